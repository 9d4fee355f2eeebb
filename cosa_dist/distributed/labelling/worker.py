"""The worker of a labelling: labels shard after shard of the training images with a trained network.

A new shard holds the same records in the same order with pseudo-masks in place of the masks. Its record comes
last, with the key of all that it was made of, so that an interrupted labelling keeps what is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Features, Image
from torch import nn

from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.decode import encode_mask
from cosa_dist.data.reading.samples import EvalSample, evaluation_sample
from cosa_dist.data.shards.split import describe_split, record_of
from cosa_dist.data.shards.writer import (
    ShardSummary,
    Trace,
    finished_shard,
    record_trace,
    shard_writer,
    stored,
    write_shard_record,
)
from cosa_dist.evaluation.protocols import multi_scale_forward, summed_views
from cosa_dist.evaluation.pseudo_mask import MaskCounts, PseudoMask, pseudo_mask
from cosa_dist.inference.predict import THREADS, in_background
from cosa_dist.training.checkpoint import load_networks
from cosa_dist.training.state import autocast

Row = dict[str, Any]


@dataclass(frozen=True)
class LabellingTask:
    """What all workers of a labelling need, as plain values that travel to other nodes."""

    run: str
    """folder of the trained run"""
    checkpoint: str
    """which checkpoint: a step number"""
    network: str
    """which of its networks"""
    masks: dict[str, Any]
    """fields of a `PseudoMaskConfig`"""
    folder: str
    """folder of the new split's shards"""
    key: str
    """hash of all that the shards are made of and how"""
    use_gpu: bool
    threads: int


class LabelledShard(NamedTuple):
    """A finished shard and how good it is."""

    summary: ShardSummary
    counts: MaskCounts


def shard_path(task: LabellingTask, number: int) -> Path:
    """The Arrow file of a shard; its record lies beside it."""
    return Path(task.folder) / f"{number:05d}.arrow"


def finished_labels(task: LabellingTask, number: int) -> LabelledShard | None:
    """The shard of that number if it is there, whole, and made of the same; otherwise None."""
    finished = finished_shard(shard_path(task, number), task.key)
    try:
        return finished and LabelledShard(finished[0], MaskCounts.from_row(finished[1]["counts"]))
    except (KeyError, TypeError, ValueError):  # counts of an earlier version
        return None


class ShardLabeller:
    """Holds the trained network and labels shard after shard."""

    def __init__(self, task: LabellingTask) -> None:
        torch.set_num_threads(max(1, task.threads))
        self.task = task
        self.device = torch.device("cuda" if task.use_gpu else "cpu")
        self.config, networks = load_networks(Path(task.run), task.checkpoint, self.device)
        self.network: nn.Module = networks[task.network]
        self.masks = PseudoMaskConfig(**task.masks)
        evaluation = self.config.evaluation
        # The method's own pass, whatever protocol the run is judged by.
        self.settings = EvaluationConfig(
            size=evaluation.size,
            scales=self.masks.scales or evaluation.scales,
            flip=bool(evaluation.flip),
            batch_size=evaluation.batch_size,
        )
        data = self.config.data
        self.split = describe_split(data.shards, data.train_split, data.cache)

    def label(self, number: int) -> LabelledShard:
        """Label shard `number` of the training split, unless it is there already."""
        if (found := finished_labels(self.task, number)) is not None:
            return found
        source, shard = self.split.open_shard(number), shard_path(self.task, number)
        features = Features({key: value for key, value in source.features.items() if key != "reliability"})
        if self.masks.reliability:
            features["reliability"] = Image(decode=False)
        classes = self.split.info.num_foreground
        counts, traces = MaskCounts.empty(classes + 1), []
        with shard_writer(shard, features) as write:
            for row, trace, counted in self._labelled_rows(source, classes):
                write(row)
                counts += counted
                traces.append(trace)
        summary = ShardSummary(number, len(traces), shard.stat().st_size)
        write_shard_record(shard, self.task.key, summary, traces, counts=counts.as_row())
        return LabelledShard(summary, counts)

    def _labelled_rows(self, source: Dataset, classes: int) -> Iterator[tuple[Row, Trace, MaskCounts]]:
        """Each row with its pseudo-mask, in order; threads decode and encode while the network works."""
        where, size = f"split '{self.split.name}' in {self.split.root}", self.settings.batch_size

        def decoded(row: Row) -> tuple[Row, EvalSample]:
            return row, evaluation_sample(record_of(row, classes), source=where)

        def encoded(labelled: tuple[Row, EvalSample, PseudoMask]) -> tuple[Row, Trace, MaskCounts]:
            row, sample, made = labelled
            mask, counted = encode_mask(made.classes.numpy()), MaskCounts.empty(classes + 1)
            reliability = encode_mask((made.reliability * 255).round().to(torch.uint8).numpy())
            counted.add(made.classes, sample.mask)
            trace = record_trace(row["id"], row["image"]["bytes"], mask, row["labels"])
            return {**row, "mask": stored(mask), "reliability": stored(reliability)}, trace, counted

        with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
            coming = in_background(decoded, source, readers, 2 * size)
            yield from in_background(encoded, self._labelled(coming), writers, 2 * size)

    def _labelled(
        self, coming: Iterator[tuple[Row, EvalSample]]
    ) -> Iterator[tuple[Row, EvalSample, PseudoMask]]:
        """Each row with its sample and, in host memory, its pseudo-mask."""
        while batch := list(islice(coming, self.settings.batch_size)):
            masks = self.pseudo_masks([sample for _, sample in batch])
            for (row, sample), mask in zip(batch, masks, strict=True):
                yield row, sample, PseudoMask(mask.classes.cpu(), mask.reliability.cpu())

    @torch.inference_mode()
    def pseudo_masks(self, samples: Sequence[EvalSample]) -> list[PseudoMask]:
        """The pseudo-masks of some images, each of its image's size."""
        originals = [sample.image.to(self.device, non_blocking=True) for sample in samples]
        tags = torch.stack([sample.labels for sample in samples])
        labels, most = tags.to(self.device, non_blocking=True), max(1, int((tags > 0.5).sum(1).max()))
        with autocast(self.config.training.precision, self.device):
            outputs = multi_scale_forward(self.network, originals, self.settings, labels, most_labels=most)
        passes = summed_views(self.settings)
        return [
            pseudo_mask(output, place, image, tags[index], self.masks, passes)
            for index, (image, (output, place)) in enumerate(zip(originals, outputs, strict=True))
        ]
