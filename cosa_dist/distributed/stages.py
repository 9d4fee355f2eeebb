"""A multi-stage run: CoSA on image tags, pseudo-masks of its training images, a segmenter trained on them.

The run `NAME` owns three others beside it, `NAME-stage-one`, `NAME-pseudo-masks` and `NAME-stage-two`, which
are ordinary runs that anything else may read. Whatever ends it early, the same name goes on: a finished stage
is not repeated, an interrupted one is resumed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.launch import Outcome, launch
from cosa_dist.distributed.plan import plan_workers
from cosa_dist.distributed.prepare import (
    MASKS,
    ONE,
    TWO,
    PreparedRun,
    is_staged,
    prepare_run,
    reopen,
    stage_one_config,
    stage_two_config,
)
from cosa_dist.distributed.run_folder import RunStoppedError
from cosa_dist.evaluation.report import better_report, read_reports
from cosa_dist.tracking.mlflow_runs import ending
from cosa_dist.tracking.tracker import Tracker

log = logging.getLogger(__name__)


def execute(run: PreparedRun, resources: Mapping[str, float]) -> Outcome:
    """Run a prepared run of one stage or several on the initialised Ray cluster; raises what `launch` does.

    Returns the (last) training's outcome.
    """
    if not is_staged(run.config):
        return launch(run, resources)
    folder, note = run.folder, run.note
    with folder.lock(), folder.handle_signals(), ending(note.tracking_uri, note.run_id):
        plan_workers(run.config, resources)  # what the last stage cannot have is said before the first one
        outcome = _run_stages(run, resources)
        folder.mark_finished()
        return outcome


def _run_stages(run: PreparedRun, resources: Mapping[str, float]) -> Outcome:
    config = run.config
    first = Path(config.stage_one.run)
    if not config.stage_one.run:
        log.info("stage one: CoSA on image tags (recipe %s)", config.stage_one.recipe)
        first = _train_stage(run, ONE, stage_one_config(config), resources).folder
    _raise_if_stop_requested(run)
    log.info("pseudo-masks of the training images")
    # Only here: a run of one stage does without the networks that labelling imports, which take seconds.
    from cosa_dist.distributed.labelling.run import run_labelling

    masks = run.folder.beside(MASKS).path
    labelled = run_labelling(first, masks, config.pseudo_masks, resources, parent_run_id=run.note.run_id)
    log.info("pseudo-masks: %s", json.dumps({key: labelled.quality[key] for key in ("miou", "ignored")}))
    _raise_if_stop_requested(run)
    log.info("stage two: segmenter on the pseudo-masks")
    outcome = _train_stage(run, TWO, stage_two_config(config, labelled.shards), resources)
    _record(run, first, labelled.quality, outcome)
    return outcome


def _raise_if_stop_requested(run: PreparedRun) -> None:
    if run.folder.stop_requested:
        raise RunStoppedError("stopped as asked between two stages")


def _train_stage(run: PreparedRun, stage: str, config: RunConfig, resources: Mapping[str, float]) -> Outcome:
    """Train one stage: from the start, from where it was, or not at all if it is finished."""
    folder = run.folder.beside(stage)
    if not folder.path.is_dir():
        return launch(prepare_run(config, run.note.run_id), resources)
    note = folder.read_note()
    if note.finished:
        log.info("%s is finished", folder.name)
        return Outcome.read(folder, note)
    return launch(reopen(folder, run.overrides), resources)


def _record(run: PreparedRun, first: Path, quality: Mapping[str, Any], outcome: Outcome) -> None:
    """Give the parent run the numbers that belong together."""
    one, two = better_report(read_reports(first)), better_report(outcome.reports)
    numbers = {
        "stage_one/miou_unfiltered": one.miou() if one else None,
        "pseudo_masks/miou": quality["miou"],
        "pseudo_masks/ignored": quality["ignored"],
        "stage_two/miou_unfiltered": two.miou() if two else None,
    }
    tracker = Tracker(run.folder.path, run.note.tracking_uri, run.note.run_id)
    tracker.log_metrics({key: value for key, value in numbers.items() if value is not None}, 0)
    tracker.close("FINISHED")
