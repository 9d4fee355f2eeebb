"""A labelling: a trained CoSA run gives its training images pseudo-masks, shard by shard over Ray's workers.

It is a run with a folder, a tracking run and pictures. Its shard folder is like any other, with pseudo-masks
in the training split and the validation split as it was, so that a segmenter is trained on it by nothing but
its configuration. The same call continues an interrupted labelling; no finished shard is made again.
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

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.reading.loader import EvaluationLoader, open_reading
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.data.shards.remote import fetch, is_remote, local_path
from cosa_dist.data.shards.split import FORMAT_VERSION, Split, describe_split, read_description
from cosa_dist.data.shards.writer import partial_folder, publish, shard_traces, split_description
from cosa_dist.distributed.labelling.worker import (
    LabelledShard,
    LabellingTask,
    ShardLabeller,
    finished_labels,
    shard_path,
)
from cosa_dist.distributed.plan import node_resources
from cosa_dist.distributed.prepare import dataset_label, new_tracking_run, reopen_tracking, trained_config
from cosa_dist.distributed.run_folder import RunFolder, RunNote, RunStoppedError
from cosa_dist.distributed.worker import warn_on_failure
from cosa_dist.evaluation.image_set import image_key, image_set
from cosa_dist.evaluation.pictures import Panel, save_panels
from cosa_dist.evaluation.pseudo_mask import MaskCounts
from cosa_dist.inference.predict import map_over_actors
from cosa_dist.inference.trained import choose
from cosa_dist.tracking.mlflow_runs import ending
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.state import check_squares

QUALITY = "quality.json"
CPUS_PER_WORKER = 2
"""most CPUs of one worker: more workers, rather than more threads, keep many cores busy"""
Progress = Callable[[int, int], None]
"""called with the labelled and all images after every shard"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabellingOutcome:
    """What a labelling gave: its shard folder, the masks' quality, and how fast it was."""

    shards: Path
    quality: dict[str, Any]
    images_per_second: float = 0.0
    """of the shards that were made this time; 0 if all were there"""

    @classmethod
    def read(cls, shards: Path) -> LabellingOutcome:
        """That of a finished labelling."""
        return cls(shards, json.loads((shards / QUALITY).read_text(encoding="utf-8")))


def run_labelling(
    run: Path,
    path: Path,
    masks: PseudoMaskConfig,
    resources: Mapping[str, float],
    *,
    checkpoint: str = "",
    parent_run_id: str = "",
    progress: Progress = lambda done, total: None,
) -> LabellingOutcome:
    """Label the training split of the trained `run` on the initialised Ray cluster, or go on with it.

    `path` is the labelling's folder, whose name its tracking run gets; `checkpoint` is newest, best or a step
    (empty: see `choose`). Raises `ConfigError` if `run` is no trained run or `path` belongs to another
    labelling, DataError or CheckpointError for what cannot be read, RuntimeError if a worker failed, and
    KeyboardInterrupt if it was stopped; the shards that are finished stay.
    """
    config = trained_config(run)
    check_squares(config, masks.scales or config.evaluation.scales)
    chosen = choose(run, checkpoint, masks.chosen_network)
    log.info("labelling by %s", chosen)
    folder, shards = RunFolder(path), path / "shards"
    task = labelling_task(run, chosen.checkpoint, chosen.network, config, masks, shards)
    note = folder.read_note() if folder.note_file.is_file() else _create(task, config, folder, parent_run_id)
    if note.key != task.key:
        raise ConfigError(
            f"{path} is of another run, checkpoint or settings: choose another name, or remove it"
        )
    if note.finished:
        return LabellingOutcome.read(shards)

    def report(done: int, total: int) -> None:
        progress(done, total)
        if folder.stop_requested:
            raise RunStoppedError(f"stopped as asked after {done} of {total} images")

    with folder.lock(), folder.handle_signals():
        folder.clear_end()
        note = reopen_tracking(note, Path(config.output))
        with ending(note.tracking_uri, note.run_id):
            if shards.is_dir():  # killed between the last shard and the note
                outcome = LabellingOutcome.read(shards)
            else:
                outcome = label_split(task, config, resources, report)
            _record(task, config, folder, note, outcome)
            folder.mark_finished()
            return outcome


def _create(task: LabellingTask, config: RunConfig, folder: RunFolder, parent_run_id: str) -> RunNote:
    """Create a labelling's tracking run, where the trained run has one, and its note, or neither."""
    trained = RunFolder(Path(task.run)).read_note()
    tracking = {"enabled": bool(trained.run_id), "uri": trained.tracking_uri}
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update=tracking)})
    tags = {
        "dataset": dataset_label(config, describe_split(config.data.shards, config.data.train_split)),
        "split": config.data.train_split,
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "seed": str(config.seed),
        "steps": task.checkpoint,
        "kind": "pseudo_masks",
        "supervision": "image tags",
        "labelled_by": Path(task.run).name,
    }
    params = {f"pseudo_masks.{key}": str(value) for key, value in task.masks.items()}
    with new_tracking_run(config, folder.name, params, tags, parent_run_id) as note:
        note = replace(note, key=task.key)
        folder.write_note(note)
    return note


def _record(
    task: LabellingTask, config: RunConfig, folder: RunFolder, note: RunNote, outcome: LabellingOutcome
) -> None:
    """Give the tracking run the masks' quality, and which images it is of (as `EvalReport.tags` does)."""
    quality = outcome.quality
    classes = describe_split(config.data.shards, config.data.train_split).info.class_names
    tracker = Tracker(folder.path, note.tracking_uri, note.run_id)
    counts = {"evaluated_images": str(quality["images_with_truth"]), "classes": str(len(classes))}
    tracker.set_tags({"image_set": quality.get("image_set", ""), "benchmark": "", **counts})
    metrics = {
        f"final/{task.network}/miou_pseudo_masks": quality["miou"],
        "final/ignored_pixels": quality["ignored"],
        "final/images_per_second": outcome.images_per_second or None,
        **{f"final/iou_pseudo_masks/{name}": iou for name, iou in quality["iou"].items()},
    }
    tracker.log_metrics({k: v for k, v in metrics.items() if v is not None}, int(task.checkpoint))
    with warn_on_failure("pictures"):
        for picture in _pictures(task, config, folder.pictures):
            tracker.log_artifact(picture, "pictures")
    tracker.log_artifact(outcome.shards / QUALITY)
    tracker.close("FINISHED")


def _pictures(task: LabellingTask, config: RunConfig, folder: Path) -> list[Path]:
    """Draw the first training images with pseudo-mask, reliability and, if known, truth."""
    if not config.evaluation.pictures:
        return []
    labeller = ShardLabeller(replace(task, threads=1, use_gpu=False))
    train = open_reading(config.data, config.data.train_split)

    def drawn() -> Iterator[tuple[EvalSample, list[Panel]]]:
        for sample in EvaluationLoader(train, 0, 1, min(config.evaluation.pictures, len(train)), 0):
            made = labeller.pseudo_masks([sample])[0]
            panels = [Panel("pseudo-mask", made.classes), Panel("reliability", made.reliability, 1.0)]
            yield sample, panels + ([] if sample.mask is None else [Panel("truth", sample.mask)])

    return save_panels(drawn(), folder, class_names=train.class_names, palette=voc_colour_map())


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
    task: LabellingTask, config: RunConfig, resources: Mapping[str, float], progress: Progress
) -> LabellingOutcome:
    """Label a run's training split and publish the task's folder, which appears only when complete.

    Raises `DataError` for a folder that is there or a shard that cannot be read, RuntimeError of a worker.
    """
    train, out = describe_split(config.data.shards, config.data.train_split), Path(task.folder)
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
    yield from map_over_actors(
        ShardLabeller, task, "label", missing, count=workers, cpus=share, gpus=int(gpus > 0)
    )


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
