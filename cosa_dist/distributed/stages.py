"""A multi-stage run: CoSA on image tags, pseudo-masks of its training images, a segmenter trained on them.

The run `NAME` owns three others beside it, `NAME-stage-one`, `NAME-pseudo-masks` and `NAME-stage-two`, which
are ordinary runs that anything else may read. Whatever ends it early, the same name goes on: a finished stage
is not repeated, an interrupted one is resumed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, load_config, merge
from cosa_dist.config.options import flatten
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import check_reading
from cosa_dist.data.shards.description import SplitDescription
from cosa_dist.distributed.interruption import STOP, RunStoppedError, listening_to_signals, sole_driver
from cosa_dist.distributed.launch import Outcome, launch
from cosa_dist.distributed.plan import plan_workers
from cosa_dist.distributed.prepare import (
    Ready,
    at_once,
    check_inputs,
    check_network,
    check_places,
    create_run_folder,
    dataset_label,
    mark_finished,
    own_config,
    prepare_run,
    read_note,
    refuse_overrides,
    refuse_used_name,
    reopen,
    with_other_workers,
)
from cosa_dist.distributed.run_folder import absolute, run_folder, with_absolute_paths
from cosa_dist.distributed.sharing import check_sharing_early
from cosa_dist.evaluation.report import EvalReport, better_report, read_reports
from cosa_dist.tracking.mlflow_runs import create_run, ending, made_with, reopen_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.store import prepare_store
from cosa_dist.tracking.tracker import Tracker

ONE, MASKS, TWO = "stage-one", "pseudo-masks", "stage-two"
INHERITED_DATA = ("shards", "reading", "cache", "train_split", "val_split", "label")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagedRun:
    """A multi-stage run that may start or go on."""

    config: RunConfig
    folder: Path
    tracking_uri: str
    run_id: str
    workers: dict[str, Any] = field(default_factory=dict)
    """dotted `distributed.*` options that an interrupted stage is resumed with"""


def is_staged(config: RunConfig) -> bool:
    """Whether the configuration asks for a first stage before its own training."""
    first = config.stage_one
    return (
        config.kind == "segmenter"
        and config.supervision == "pseudo_masks"
        and bool(first.recipe or first.run)
    )


def stage_one_config(config: RunConfig, parent: str) -> RunConfig:
    """The first stage's configuration: its recipe and options, on the data and the place of the whole run.

    Raises:
        ConfigError: the recipe or the options are wrong, or it is no CoSA run.
    """
    first = load_config(config.stage_one.recipe, None, config.stage_one.options, "stage_one.options")
    if first.kind != "cosa":
        raise ConfigError(f"stage_one.recipe {config.stage_one.recipe}: a first stage is a CoSA run")
    shared = {
        "name": f"{parent}-{ONE}",
        "seed": config.seed,
        "output": config.output,
        "tracking": config.tracking.model_dump(),
        "distributed": config.distributed.model_dump(),
        "data": {name: getattr(config.data, name) for name in INHERITED_DATA},
    }
    return build_config(merge(first.model_dump(), shared), f"recipe {config.stage_one.recipe}")


def stage_two_config(config: RunConfig, parent: str, shards: Path) -> RunConfig:
    """The second stage's configuration: the run's own, on the labelled shards."""
    own = {
        "name": f"{parent}-{TWO}",
        "data": {"shards": str(shards)},
        "stage_one": {"recipe": "", "options": {}, "run": ""},
    }
    return build_config(merge(config.model_dump(), own), "second stage")


def prepare_staged(config: RunConfig, ready: Ready = at_once) -> StagedRun:
    """Check what can be checked of all stages, and create the run's folder and tracking run.

    Args:
        config: the whole run.
        ready: called before anything is made.

    Raises:
        ConfigError, FileNotFoundError, ValueError: one line on what cannot be used.
    """
    name = config.name or f"{config.recipe}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = with_absolute_paths(config.model_copy(update={"name": name}))
    check_sharing_early(config)
    folder = run_folder(config)
    for path in (folder, *(folder.with_name(f"{name}-{stage}") for stage in (ONE, MASKS, TWO))):
        refuse_used_name(path)
    check_places(config)
    val = _check_stages(config, name)
    ready(config)
    uri, run_id = "", ""
    if config.tracking.enabled:
        uri = prepare_store(config.tracking.uri or None, Path(config.output))
        tags = {"kind": "stages", "recipe": config.recipe, "seed": str(config.seed), **provenance()}
        tags |= {"dataset": dataset_label(config, val), "backbone": config.model.backbone}
        run_id = create_run(uri, config.tracking.experiment, name, params=flatten(config), tags=tags)
    with made_with(uri, run_id):
        create_run_folder(folder, config, {"tracking_uri": uri, "run_id": run_id, "finished": False})
    return StagedRun(config, folder, uri, run_id)


def _check_stages(config: RunConfig, name: str) -> SplitDescription:
    """Check the first stage's inputs, or the run that stands for it, and the second stage's network."""
    val = check_reading(config.data, config.data.val_split)
    if config.stage_one.run:
        from cosa_dist.distributed.labelling.run import trained_config
        from cosa_dist.inference.trained import choose

        first = Path(config.stage_one.run)
        trained_config(first)
        choose(first)
    else:
        check_inputs(with_absolute_paths(stage_one_config(config, name)))
    check_network(config, len(val.info.class_names))
    return val


def reopen_staged(
    name: str, output: str, overrides: Mapping[str, object], ready: Ready = at_once
) -> StagedRun | None:
    """Take up a multi-stage run that was interrupted; None if there is no run of that name and kind.

    Args:
        name: run name.
        output: the output folder.
        overrides: dotted options; only `distributed.*` may change.
        ready: called before the run is marked as running.

    Raises:
        ConfigError: it is finished, or an option may not change.
    """
    folder = Path(absolute(output, "output", True)) / "runs" / name
    if not (folder / "config.yaml").is_file():
        return None
    config = own_config(folder / "config.yaml")
    if not is_staged(config):
        return None
    refuse_overrides(overrides)
    note = read_note(folder)
    if note["finished"]:
        raise ConfigError(f"run {name} is finished; start a new one under another --name")
    config = with_other_workers(config, overrides)
    ready(config)
    uri, run_id = str(note["tracking_uri"]), str(note["run_id"])
    if run_id:
        reopen_run(uri, run_id)
    workers = {key: value for key, value in overrides.items() if key.startswith("distributed.")}
    return StagedRun(config, folder, uri, run_id, workers)


def conduct_stages(
    run: StagedRun,
    resources: Mapping[str, float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Run what is left of the stages on the initialised Ray cluster.

    Args:
        run: what `prepare_staged` or `reopen_staged` gave.
        resources: total resources of the cluster.
        progress: called with the labelled and all images of the labelling.

    Returns:
        The second stage's outcome.

    Raises:
        ConfigError, RunFailedError, RuntimeError: a stage could not start or failed.
        KeyboardInterrupt: it was stopped; the tracking runs are marked KILLED.
    """
    folder = run.folder
    with sole_driver(folder), listening_to_signals(folder), ending(run.tracking_uri, run.run_id):
        (folder / STOP).unlink(missing_ok=True)
        plan_workers(run.config, resources)  # what the last stage cannot have is said before the first one
        outcome = _stages(run, dict(resources), progress)
        mark_finished(folder)
        return outcome


def _stages(run: StagedRun, resources: dict[str, float], progress: Callable[[int, int], None]) -> Outcome:
    config, name = run.config, run.folder.name
    if config.stage_one.run:
        first = Path(config.stage_one.run)
    else:
        log.info("stage one: CoSA on image tags (recipe %s)", config.stage_one.recipe)
        first = _stage(run, ONE, stage_one_config(config, name), resources).folder
    _heed_stop(run)
    log.info("pseudo-masks of the training images")
    # Only here: a run of one stage does without the networks that labelling imports, which take seconds.
    from cosa_dist.distributed.labelling.run import run_labelling

    labelled = run_labelling(
        first,
        run.folder.with_name(f"{name}-{MASKS}"),
        config.pseudo_masks,
        resources,
        parent_run_id=run.run_id,
        progress=progress,
    )
    log.info("pseudo-masks: %s", json.dumps({key: labelled.quality[key] for key in ("miou", "ignored")}))
    _heed_stop(run)
    log.info("stage two: segmenter on the pseudo-masks")
    outcome = _stage(run, TWO, stage_two_config(config, name, labelled.shards), resources)
    _record(run, first, labelled.quality, outcome)
    return outcome


def _heed_stop(run: StagedRun) -> None:
    """Stop between two stages if a signal asked for it."""
    if (run.folder / STOP).exists():
        raise RunStoppedError("stopped as asked between two stages")


def _stage(run: StagedRun, stage: str, config: RunConfig, resources: dict[str, float]) -> Outcome:
    """Train one stage: from the start, from where it was, or not at all if it is finished."""
    folder = run.folder.with_name(f"{run.folder.name}-{stage}")
    if not folder.is_dir():
        return launch(prepare_run(config, run.run_id), resources)
    note = read_note(folder)
    if note["finished"]:
        log.info("%s is finished", folder.name)
        return Outcome(folder, str(note["tracking_uri"]), str(note["run_id"]), read_reports(folder))
    return launch(reopen(folder.name, config.output, run.workers), resources)


def _record(run: StagedRun, first: Path, quality: dict[str, Any], outcome: Outcome) -> None:
    """Give the parent run the three numbers that belong together."""

    def best(reports: Mapping[str, EvalReport]) -> float | None:
        better = better_report(reports)
        return better.miou() if better else None

    numbers = {
        "stage_one/miou_unfiltered": best(read_reports(first)),
        "pseudo_masks/miou": quality["miou"],
        "pseudo_masks/ignored": quality["ignored"],
        "stage_two/miou_unfiltered": best(outcome.reports),
    }
    tracker = Tracker(run.folder, run.tracking_uri, run.run_id)
    tracker.log_metrics({key: value for key, value in numbers.items() if value is not None}, 0)
    tracker.close("FINISHED")
