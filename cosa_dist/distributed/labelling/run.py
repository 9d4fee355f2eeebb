"""A labelling as a run: its folder, its tracking run, its pictures and the quality of its masks.

A finished labelling is not repeated, and an interrupted one goes on; the masks themselves are made in
`shards.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.reading.loader import EvaluationLoader, open_reading
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.data.shards.description import describe_split
from cosa_dist.distributed.checks import trained_config
from cosa_dist.distributed.final_artifacts import warn_on_failure
from cosa_dist.distributed.interruption import RunStoppedError, handle_signals, sole_driver
from cosa_dist.distributed.labelling.shards import (
    QUALITY,
    LabellingOutcome,
    Progress,
    ignore_progress,
    label_split,
    labelling_task,
)
from cosa_dist.distributed.labelling.worker import LabellingTask, ShardLabeller
from cosa_dist.distributed.prepare import dataset_label, new_tracking_run
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.evaluation.pictures import Panel, save_panels
from cosa_dist.inference.trained import choose
from cosa_dist.tracking.mlflow_runs import ending, reopen_run
from cosa_dist.tracking.tracker import Tracker

log = logging.getLogger(__name__)


def run_labelling(
    run: Path,
    path: Path,
    masks: PseudoMaskConfig,
    resources: Mapping[str, float],
    *,
    checkpoint: str = "",
    parent_run_id: str = "",
    progress: Progress = ignore_progress,
) -> LabellingOutcome:
    """Label the training split of the trained `run` on the initialised Ray cluster, or go on with it.

    `path` is the labelling's folder, whose name its tracking run gets; `checkpoint` is newest, best or a step
    (empty: see `choose`). Raises `ConfigError` if `run` is no trained run or `path` belongs to another
    labelling, DataError or CheckpointError for what cannot be read, RuntimeError if a worker failed, and
    KeyboardInterrupt if it was stopped; the shards that are finished stay.
    """
    config = trained_config(run)
    chosen = choose(run, checkpoint, "" if masks.network == "better" else masks.network)
    log.info("labelling by %s", chosen)
    folder, shards = RunFolder(path), path / "shards"
    task = labelling_task(run, chosen.checkpoint, chosen.network, config, masks, shards)
    if folder.note_file.is_file():
        note = folder.read_note()
        if note.key != task.key:
            raise ConfigError(
                f"{path} is of another run, checkpoint or settings: choose another name, or remove it"
            )
        if note.finished:
            return _finished(shards)
    else:
        note = _create(task, config, folder, parent_run_id)
    with sole_driver(folder), handle_signals(folder):
        folder.clear_end()
        if note.run_id:
            reopen_run(note.tracking_uri, note.run_id)
        with ending(note.tracking_uri, note.run_id):
            if shards.is_dir():  # killed between the last shard and the note
                outcome = _finished(shards)
            else:
                outcome = _label(task, config, folder, resources, progress)
            _record(task, config, folder, note, outcome)
            folder.mark_finished()
            return outcome


def _finished(shards: Path) -> LabellingOutcome:
    return LabellingOutcome(shards, json.loads((shards / QUALITY).read_text(encoding="utf-8")), 0.0)


def _label(
    task: LabellingTask,
    config: RunConfig,
    folder: RunFolder,
    resources: Mapping[str, float],
    progress: Progress,
) -> LabellingOutcome:
    def labelled(done: int, total: int) -> None:
        progress(done, total)
        if folder.stop_requested:
            raise RunStoppedError(f"stopped as asked after {done} of {total} images")

    return label_split(task, config, Path(task.folder), resources, labelled)


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
    tracker.set_tags(
        {
            "image_set": quality.get("image_set", ""),
            "benchmark": "",
            "evaluated_images": str(quality["images_with_truth"]),
            "classes": str(len(classes)),
        }
    )
    metrics = {
        f"final/{task.network}/miou_pseudo_masks": quality["miou"],
        "final/ignored_pixels": quality["ignored"],
        "final/images_per_second": outcome.images_per_second or None,
        **{f"final/iou_pseudo_masks/{name}": iou for name, iou in quality["iou"].items()},
    }
    known = {name: value for name, value in metrics.items() if value is not None}
    tracker.log_metrics(known, int(task.checkpoint))
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
