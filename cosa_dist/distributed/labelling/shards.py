"""Labelling: a trained CoSA run gives its training images pseudo-masks, shard by shard over Ray's workers.

The outcome is a shard folder like any other, with the pseudo-masks in the training split and the validation
split as it was, so that a segmenter is trained on it by nothing but its configuration. The same call
continues an interrupted labelling and repeats no finished shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import ActorPool

from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.shards.description import (
    FORMAT_VERSION,
    Split,
    describe_split,
    read_description,
)
from cosa_dist.data.shards.remote import fetch, is_remote, local_path
from cosa_dist.data.shards.writer import partial_folder, publish, shard_traces, split_description
from cosa_dist.distributed.labelling.worker import (
    LabelledShard,
    LabellingTask,
    ShardLabeller,
    finished_labels,
    shard_path,
)
from cosa_dist.distributed.plan import node_resources
from cosa_dist.evaluation.image_set import image_key, image_set
from cosa_dist.evaluation.pseudo_mask import MaskCounts

QUALITY = "quality.json"
CPUS_PER_WORKER = 2
"""most CPUs of one worker: more workers, rather than more threads, keep many cores busy"""
log = logging.getLogger(__name__)


Progress = Callable[[int, int], None]
"""called with the labelled and all images after every shard"""


def ignore_progress(done: int, total: int) -> None:
    """The `Progress` of a caller that shows none."""


@dataclass(frozen=True)
class LabellingOutcome:
    """What a labelling gave: its shard folder, the masks' quality, and how fast it was."""

    shards: Path
    quality: dict[str, Any]
    images_per_second: float
    """of the shards that were made this time; 0 if all were there"""


def labelling_task(
    run: Path, checkpoint: Path, network: str, config: RunConfig, masks: PseudoMaskConfig, out: Path
) -> LabellingTask:
    """Describe a labelling into the folder `out`; its key tells whether a finished shard is still right."""
    train = describe_split(config.data.shards, config.data.train_split)
    sealed = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["files"]
    made_of = (FORMAT_VERSION, train.fingerprint, sealed, network, masks.model_dump(mode="json"))
    size = (config.evaluation.size, config.evaluation.scales, config.evaluation.flip)
    return LabellingTask(
        run=str(run),
        checkpoint=str(int(checkpoint.name.rpartition("-")[2])),
        network=network,
        masks=masks.model_dump(mode="json"),
        folder=str(out),
        key=hashlib.sha256(json.dumps([made_of, size], default=str).encode()).hexdigest(),
        use_gpu=False,
        threads=1,
    )


def label_split(
    task: LabellingTask,
    config: RunConfig,
    out: Path,
    resources: Mapping[str, float],
    progress: Progress = ignore_progress,
) -> LabellingOutcome:
    """Label the training split of a run and publish the shard folder `out`, which appears only when complete.

    Raises `DataError` if `out` is there already or a source shard cannot be read, `RuntimeError` if a worker
    failed.
    """
    data = config.data
    train = describe_split(data.shards, data.train_split)
    started = time.perf_counter()
    with partial_folder(out, overwrite=False) as partial:
        folder = partial / train.name
        folder.mkdir(exist_ok=True)
        task = replace(task, folder=str(folder))
        numbers = range(len(train.shards))
        done = {number: shard for number in numbers if (shard := finished_labels(task, number))}
        if done:
            log.info("%d of %d shards are there from an earlier attempt", len(done), len(train.shards))
        before = labelled = sum(shard.summary.count for shard in done.values())
        progress(labelled, train.size)
        for shard in _labelled_shards(task, [n for n in numbers if n not in done], resources):
            done[shard.summary.number] = shard
            labelled += shard.summary.count
            progress(labelled, train.size)
        seconds = time.perf_counter() - started
        quality = _publish(task, config, partial, out, [done[number] for number in numbers])
    return LabellingOutcome(out, quality, (train.size - before) / seconds)


def _labelled_shards(
    task: LabellingTask, missing: list[int], resources: Mapping[str, float]
) -> Iterator[LabelledShard]:
    """Label shards on every GPU, or every CPU, of the cluster; a worker that dies is started again."""
    if not missing:
        return
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    smallest_node = int(min(node.get("CPU", 1) for node in node_resources()))
    share = max(1, min(CPUS_PER_WORKER, smallest_node, cpus // gpus if gpus else cpus))
    workers = min(len(missing), gpus or max(1, cpus // share))
    task = replace(task, use_gpu=gpus > 0, threads=share)
    labeller = ray.remote(num_cpus=share, num_gpus=int(gpus > 0), max_restarts=3, max_task_retries=3)(
        ShardLabeller
    )
    actors: list[Any] = [labeller.remote(task) for _ in range(workers)]
    pool = ActorPool(actors)
    try:
        yield from pool.map_unordered(lambda actor, number: actor.label.remote(number), missing)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"{type(cause).__name__}: {' '.join(str(cause).split())[:600]}") from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _publish(
    task: LabellingTask, config: RunConfig, partial: Path, out: Path, shards: list[LabelledShard]
) -> dict[str, Any]:
    """Give the finished folder its description and its name; return the masks' quality."""
    data = config.data
    train = describe_split(data.shards, data.train_split)
    source = read_description(train.root)
    counts = sum((shard.counts for shard in shards), MaskCounts.empty(train.info.num_foreground + 1))
    quality = counts.quality(train.info.class_names)
    numbers = [shard.summary.number for shard in shards]
    traces = [trace for number in numbers for trace in shard_traces(shard_path(task, number))]
    keys = [image_key(trace.id) for trace in traces]
    quality["image_set"] = image_set(train.info.class_names, keys, counts.true_pixels().tolist())
    described = split_description(train.info.class_names, [s.summary for s in shards], traces)
    made_by = {"run": Path(task.run).name, "step": int(task.checkpoint), "network": task.network}
    described["pseudo_masks"] = made_by | {"settings": task.masks, "key": task.key}
    splits = {train.name: described}
    if data.val_split != train.name:
        splits[data.val_split] = _take_over(describe_split(data.shards, data.val_split), partial, source)
    content = {"name": source["name"], "class_names": source["class_names"], "splits": splits}
    publish(partial, out, False, content, {QUALITY: quality})
    return quality


def _take_over(split: Split, partial: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Link (or copy, or fetch) the shards of a split that stays as it is; return its description."""
    folder = partial / split.name
    folder.mkdir(exist_ok=True)
    described: dict[str, Any] = json.loads(json.dumps(source["splits"][split.name]))
    for entry, shard in zip(split.shards, described["shards"], strict=True):
        where, path = f"{split.root}/{split.name}/{entry.file}", folder / entry.file
        shard["part"] = entry.file
        path.unlink(missing_ok=True)
        if is_remote(split.root):
            fetch(where, path, entry.size)
            continue
        try:
            os.link(local_path(where), path)
        except OSError:  # another file system
            shutil.copy2(local_path(where), path)
    return described
