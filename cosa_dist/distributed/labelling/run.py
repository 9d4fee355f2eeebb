"""A labelling as a run: its folder, its tracking run, its pictures and the quality of its masks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, read_yaml
from cosa_dist.config.schema import RunConfig
from cosa_dist.config.stages import PseudoMaskConfig
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.reading.loader import EvaluationLoader, open_reading
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.data.shards.description import describe_split
from cosa_dist.distributed.final_artifacts import spared
from cosa_dist.distributed.interruption import STOP, RunStoppedError, listening_to_signals, sole_driver
from cosa_dist.distributed.labelling.shards import QUALITY, LabellingOutcome, label_split, labelling_task
from cosa_dist.distributed.labelling.worker import LabellingTask, ShardLabeller
from cosa_dist.distributed.prepare import dataset_label, mark_finished, read_note, write_note
from cosa_dist.evaluation.pictures import Panel, class_panel, heat_panel, save_panels
from cosa_dist.inference.trained import choose
from cosa_dist.tracking.mlflow_runs import create_run, ending, made_with, reopen_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.tracker import Tracker

SHARDS = "shards"
log = logging.getLogger(__name__)


def trained_config(run: Path) -> RunConfig:
    """The configuration of a trained CoSA run.

    Raises:
        ConfigError: no run folder, or not one of a CoSA run.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"no run folder at {run}: it has no config.yaml")
    config = build_config(read_yaml(run / "config.yaml"), str(run / "config.yaml"))
    if config.kind != "cosa":
        raise ConfigError(f"{run} is a {config.kind} run; pseudo-masks are made by a CoSA run")
    return config


def run_labelling(
    run: Path,
    folder: Path,
    masks: PseudoMaskConfig,
    resources: Mapping[str, float],
    *,
    checkpoint: str = "",
    parent_run_id: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabellingOutcome:
    """Label the training split of a finished run, or go on with it; a finished labelling is not repeated.

    Args:
        run: folder of the trained run.
        folder: folder of the labelling, whose name becomes that of its tracking run.
        masks: how masks are made.
        resources: total resources of the initialised Ray cluster.
        checkpoint: newest, best or a step number; empty for the run's default (see `choose`).
        parent_run_id: tracking run that it belongs to.
        progress: called with the labelled and all images.

    Raises:
        ConfigError: no trained run, or the folder belongs to another labelling.
        DataError, CheckpointError: something cannot be read.
        RuntimeError: a worker failed.
        KeyboardInterrupt: it was stopped; the shards that are finished stay.
    """
    config = trained_config(run)
    shards = folder / SHARDS
    chosen = choose(run, checkpoint, "" if masks.network == "better" else masks.network)
    log.info("labelling by %s", chosen)
    task = labelling_task(run, chosen.checkpoint, chosen.network, config, masks, shards)
    if (folder / "run.json").is_file():
        if read_note(folder).get("key") != task.key:
            raise ConfigError(
                f"{folder} is of another run, checkpoint or settings: choose another name, or remove it"
            )
        if read_note(folder)["finished"]:
            quality = json.loads((shards / QUALITY).read_text(encoding="utf-8"))
            return LabellingOutcome(shards, quality, 0.0)
    else:
        _begin(task, config, folder, parent_run_id)
    with sole_driver(folder), listening_to_signals(folder):
        (folder / STOP).unlink(missing_ok=True)
        return _label(task, config, folder, resources, progress)


def _label(
    task: LabellingTask,
    config: RunConfig,
    folder: Path,
    resources: Mapping[str, float],
    progress: Callable[[int, int], None],
) -> LabellingOutcome:
    """Label, and record the outcome in folder and tracker."""
    note = read_note(folder)
    uri, run_id = str(note["tracking_uri"]), str(note["run_id"])
    if run_id:
        reopen_run(uri, run_id)

    def labelled(done: int, total: int) -> None:
        progress(done, total)
        if (folder / STOP).exists():
            raise RunStoppedError(f"stopped as asked after {done} of {total} images")

    with ending(uri, run_id):
        shards = folder / SHARDS
        if shards.is_dir():  # killed between the last shard and the note
            quality = json.loads((shards / QUALITY).read_text(encoding="utf-8"))
            outcome = LabellingOutcome(shards, quality, 0.0)
        else:
            outcome = label_split(task, config, shards, resources, labelled)
        tracker = Tracker(folder, uri, run_id)
        tracker.set_tags(_evaluated(outcome.quality, config))
        tracker.log_metrics(_metrics(outcome, task), int(task.checkpoint))
        with spared("pictures"):
            for picture in _pictures(task, config, folder / "pictures"):
                tracker.log_artifact(picture, "pictures")
        tracker.log_artifact(outcome.shards / QUALITY)
        tracker.close("FINISHED")
        mark_finished(folder)
        return outcome


def _metrics(outcome: LabellingOutcome, task: LabellingTask) -> dict[str, float]:
    quality = outcome.quality
    values = {
        f"final/{task.network}/miou_pseudo_masks": quality["miou"],
        "final/ignored_pixels": quality["ignored"],
        "final/images_per_second": outcome.images_per_second or None,
    }
    values |= {f"final/iou_pseudo_masks/{name}": value for name, value in quality["iou"].items()}
    return {name: value for name, value in values.items() if value is not None}


def _evaluated(quality: Mapping[str, Any], config: RunConfig) -> dict[str, str]:
    """Which images the masks' quality is of, as `EvalReport.tags` says it of an evaluation."""
    classes = len(describe_split(config.data.shards, config.data.train_split).info.class_names)
    counts = {"evaluated_images": str(quality["images_with_truth"]), "classes": str(classes)}
    return {"image_set": quality.get("image_set", ""), "benchmark": "", **counts}


def _begin(task: LabellingTask, config: RunConfig, folder: Path, parent_run_id: str) -> None:
    """Create a labelling's tracking run and its note, or neither."""
    uri = str(read_note(Path(task.run))["tracking_uri"])
    run_id = _tracking_run(task, config, folder.name, parent_run_id)
    with made_with(uri, run_id):
        write_note(folder, {"tracking_uri": uri, "run_id": run_id, "finished": False, "key": task.key})


def _tracking_run(task: LabellingTask, config: RunConfig, name: str, parent_run_id: str) -> str:
    """Create the labelling's tracking run where the trained run has one; return its id."""
    note = read_note(Path(task.run))
    if not note["run_id"]:
        return ""
    train = describe_split(config.data.shards, config.data.train_split)
    tags = {
        "dataset": dataset_label(config, train),
        "split": config.data.train_split,
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "seed": str(config.seed),
        "steps": task.checkpoint,
        "kind": "pseudo_masks",
        "supervision": "image tags",
        "labelled_by": Path(task.run).name,
        **provenance(),
    }
    params = {f"pseudo_masks.{key}": str(value) for key, value in task.masks.items()}
    return create_run(
        str(note["tracking_uri"]),
        config.tracking.experiment,
        name,
        params=params,
        tags=tags,
        parent_run_id=parent_run_id,
    )


def _pictures(task: LabellingTask, config: RunConfig, folder: Path) -> list[Path]:
    """Draw the first training images with pseudo-mask, reliability and, if known, truth."""
    if not config.evaluation.pictures:
        return []
    labeller = ShardLabeller(replace(task, threads=1, use_gpu=False))
    train = open_reading(config.data, config.data.train_split)

    def drawn() -> Iterator[tuple[EvalSample, list[Panel]]]:
        for sample in EvaluationLoader(train, 0, 1, min(config.evaluation.pictures, len(train)), 0):
            made = labeller.pseudo_masks([sample])[0]
            panels = [class_panel("pseudo-mask", made.classes), heat_panel("reliability", made.reliability)]
            yield sample, panels + ([] if sample.mask is None else [class_panel("truth", sample.mask)])

    return save_panels(drawn(), folder, class_names=train.class_names, palette=voc_colour_map())
