"""Labels one shard of training images with a trained network; workers of a labelling do it again and again.

The new shard holds the same records in the same order with the pseudo-masks in place of the masks. It is
written under a temporary name; its record comes last, with the key of everything that it was made of, so that
an interrupted labelling takes over what is finished and makes the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image
from torch import Tensor, nn

from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.data.decode import encode_mask
from cosa_dist.data.reading.samples import EvalSample, evaluation_sample
from cosa_dist.data.shards.description import describe_split
from cosa_dist.data.shards.split import record_of
from cosa_dist.data.shards.writer import (
    ShardSummary,
    finished_shard,
    record_trace,
    shard_writer,
    stored,
    write_shard_record,
)
from cosa_dist.evaluation.protocols import multi_scale_forward, square_image
from cosa_dist.evaluation.pseudo_mask import MaskCounts, PseudoMask, pseudo_mask
from cosa_dist.training.checkpoint import load_networks
from cosa_dist.training.precision import autocast


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


@dataclass(frozen=True)
class LabelledShard:
    """A finished shard: its summary, how good it is, and how long it took (0 if it was there)."""

    summary: ShardSummary
    counts: MaskCounts
    seconds: float = 0.0


def finished_labels(task: LabellingTask, number: int) -> LabelledShard | None:
    """The shard of that number if it is there, whole, and made of the same; otherwise None."""
    finished = finished_shard(shard_path(task, number), task.key)
    if finished is None:
        return None
    summary, record = finished
    try:
        return LabelledShard(summary, MaskCounts.from_row(record["counts"]))
    except (KeyError, TypeError, ValueError):  # counts of an earlier version
        return None


def shard_path(task: LabellingTask, number: int) -> Path:
    """The Arrow file of a shard; its record lies beside it."""
    return Path(task.folder) / f"{number:05d}.arrow"


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
        scales = self.masks.scales or evaluation.scales
        self.settings = evaluation.model_copy(update={"scales": scales})
        data = self.config.data
        self.split = describe_split(data.shards, data.train_split, data.cache)

    def label(self, number: int) -> LabelledShard:
        """Label shard `number` of the training split, unless it is there already.

        Raises `DataError` for a source shard or record that cannot be read, OSError if the disk refuses.
        """
        found = finished_labels(self.task, number)
        if found is not None:
            return found
        started = time.perf_counter()
        source = self.split.open_shard(number)
        shard = shard_path(self.task, number)
        features = labelled_features(source.features, self.masks.reliability)
        classes = self.split.info.num_foreground
        counts, traces = MaskCounts.empty(classes + 1), []
        with shard_writer(shard, features) as write:
            for row, sample, labelled in self._labelled(source, classes):
                mask = encode_mask(labelled.classes.cpu().numpy())
                reliability = (labelled.reliability * 255).round().to(torch.uint8).cpu().numpy()
                new = {**row, "mask": stored(mask), "reliability": stored(encode_mask(reliability))}
                write(new)
                counts.add(labelled.classes.cpu(), sample.mask)
                traces.append(record_trace(row["id"], row["image"]["bytes"], mask, row["labels"]))
        summary = ShardSummary(number, len(traces), shard.stat().st_size)
        write_shard_record(shard, self.task.key, summary, traces, counts=counts.as_row())
        return LabelledShard(summary, counts, time.perf_counter() - started)

    def _labelled(
        self, source: Dataset, classes: int
    ) -> Iterator[tuple[dict[str, Any], EvalSample, PseudoMask]]:
        """Each row with its sample and pseudo-mask."""
        where = f"split '{self.split.name}' in {self.split.root}"
        rows = iter(source)
        while batch := list(islice(rows, self.settings.batch_size)):
            samples = [evaluation_sample(record_of(row, classes), source=where) for row in batch]
            yield from zip(batch, samples, self.pseudo_masks(samples), strict=True)

    @torch.inference_mode()
    def pseudo_masks(self, samples: Sequence[EvalSample]) -> list[PseudoMask]:
        """The pseudo-masks of some images, each of its image's size."""
        images = torch.stack([square_image(s.image.to(self.device), self.settings.size) for s in samples])
        labels: Tensor = torch.stack([sample.labels for sample in samples]).to(self.device)
        with autocast(self.config.training.precision, self.device):
            output = multi_scale_forward(self.network, images, self.settings, labels)
        passes = len(self.settings.scales) * (2 if self.settings.flip else 1)
        return [
            pseudo_mask(output, index, sample.image.to(self.device), labels[index], self.masks, passes)
            for index, sample in enumerate(samples)
        ]


def labelled_features(features: Features, reliability: bool) -> Features:
    """Columns of a labelled shard: those of its source, and perhaps the reliability."""
    columns = {name: feature for name, feature in features.items() if name != "reliability"}
    return Features({**columns, "reliability": Image(decode=False)} if reliability else columns)
