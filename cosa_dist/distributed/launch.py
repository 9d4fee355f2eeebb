"""From a prepared run to a finished one: workers of Ray Train, one in this process, or stage after stage.

A single worker on this machine needs no cluster: where Ray was not started it runs in this process. Whatever
happens to a run, its tracking run gets its status here; a driver that is killed leaves that to `--resume`.

A multi-stage run `NAME` owns three others beside it, `NAME-stage-one` (CoSA on image tags),
`NAME-pseudo-masks` and `NAME-stage-two` (a segmenter), which are ordinary runs that anything else may read.
Whatever ends it early, `--resume` goes on: a finished stage is not repeated, an interrupted one is resumed.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.plan import (
    FEWEST_CPUS,
    Resources,
    await_resources,
    elastic_numbers,
    few_cpus,
    node_resources,
    plan_workers,
    workers_that_fit,
)
from cosa_dist.distributed.prepare import (
    MASKS,
    ONE,
    TWO,
    PreparedRun,
    is_staged,
    plan_stages,
    prepare_run,
    reopen,
    stage_one_config,
    stage_two_config,
)
from cosa_dist.distributed.ray_worker import in_one_line, run_and_record
from cosa_dist.distributed.run_folder import RunFailedError, RunFolder, RunNote, RunStoppedError, WorkerTask
from cosa_dist.evaluation.report import EvalReport, better_report, read_reports
from cosa_dist.tracking.mlflow_runs import Status, ending, finish_run
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.checkpoint_files import remove_half_written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run gives to the job that launched it."""

    folder: Path
    tracking_uri: str
    run_id: str
    reports: dict[str, EvalReport]

    @classmethod
    def read(cls, folder: RunFolder, note: RunNote) -> Outcome:
        """That of a finished run."""
        return cls(folder.path, note.tracking_uri, note.run_id, read_reports(folder.path))


def launch(run: PreparedRun, resources: Mapping[str, float], callbacks: Sequence[Any] = ()) -> Outcome:
    """Run a prepared run on the initialised Ray cluster, or in this process if there is none.

    `resources` are the cluster's or this machine's; `callbacks` are Ray Train's user callbacks. Raises
    `ConfigError` if there is no room for the run or another driver has it, `RunFailedError` if it failed, and
    KeyboardInterrupt after Ctrl-C, SIGTERM, or a stop that was requested (`RunStoppedError`).
    """
    folder = run.folder
    status: Status = "FAILED"
    training: Training | None = None
    with folder.lock(), folder.handle_signals():
        try:
            training = _training(run, resources, callbacks)
            training.fit()
            raise_recorded_failure(folder)
            folder.mark_finished()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if status == "FAILED" and folder.pruned:
                status = "KILLED"  # what its dying processes met is no failure
            if run.note.run_id:
                finish_run(run.note.tracking_uri, run.note.run_id, status)
            if status == "KILLED" and training is not None:
                training.abort()
            if status != "FINISHED":
                remove_half_written(folder.checkpoints)
    return Outcome.read(folder, run.note)


def raise_recorded_failure(folder: RunFolder) -> None:
    """Raise what the workers recorded before they returned: a failure, or a stop that was requested."""
    if folder.failure is not None:
        raise RunFailedError(folder.failure)
    if folder.stopped_by_user is not None:
        raise RunStoppedError(folder.stopped_by_user)


class Training(Protocol):
    """The workers of a run."""

    def fit(self) -> object:
        """Train to the end; `RunFailedError` if no restart of the workers helps."""

    def abort(self) -> None:
        """End what still runs."""


def _training(run: PreparedRun, resources: Mapping[str, float], callbacks: Sequence[Any]) -> Training:
    settings = run.config.distributed
    on_ray = has_ray()
    plan = plan_workers(run.config, resources, node_resources() if on_ray else ())
    task = WorkerTask(
        config=run.config.model_dump(mode="json"),
        folder=str(run.folder.path),
        tracking_uri=run.note.tracking_uri,
        run_id=run.note.run_id,
        use_gpu=plan.use_gpu,
        micro_batch_size=plan.micro_batch_size,
        cpus=int(plan.cpus_per_worker),
    )
    log.info(plan.describe())
    if plan.use_gpu and plan.cpus_per_worker < FEWEST_CPUS:
        log.warning(few_cpus(plan.cpus_per_worker))
    if not on_ray:
        return WorkerHere(task, run.folder, settings.max_failures)
    # Only here: a run in this process does without Ray, whose import takes seconds.
    from cosa_dist.distributed.scaling import PlannedTrainer

    await_resources(plan, settings.placement_deadline)
    return PlannedTrainer(task, plan, run.config, callbacks)


def runs_here(config: RunConfig, machine: Resources) -> bool:
    """Whether a run needs no cluster: a single worker, of one stage, on a machine with these resources.

    With RAY_ADDRESS=local Ray is started all the same. Raises what `plan_workers` does.
    """
    if os.environ.get("RAY_ADDRESS") or has_ray() or is_staged(config) or elastic_numbers(config):
        return False
    plan = plan_workers(config, machine)
    return plan.workers == 1 and workers_that_fit(plan.resources_per_worker, [machine]) > 0


def has_ray() -> bool:
    """Whether this process has joined or started a Ray cluster; does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@dataclass(frozen=True)
class WorkerHere:
    """A single worker in this process, started again after an exception as Ray would start it again.

    What ends the process, or leaves it without its GPU, needs `--resume`.
    """

    task: WorkerTask
    folder: RunFolder
    max_failures: int

    def fit(self) -> None:
        """Train to the end; `RunFailedError` after more than `max_failures` failures, or one of the GPU."""
        for left in reversed(range(self.max_failures + 1)):
            try:
                run_and_record(self.task, self.folder)
                return
            except Exception as error:
                failure, usable = in_one_line(error), _leaves_the_gpu_usable(error)
            if not left and usable:
                raise RunFailedError(failure)
            # Only here, where no traceback holds the failed worker's networks any more.
            if not (usable and _free_memory()):
                raise RunFailedError(
                    f"{failure}; this process cannot use its GPU any more: continue with --resume "
                    f"{self.folder.name}"
                )
            log.warning("%s; starting again from the newest checkpoint", failure)

    def abort(self) -> None:
        """Nothing is left: what interrupted this process has ended the worker."""


def _leaves_the_gpu_usable(error: BaseException) -> bool:
    """Whether CUDA still answers this process after an error: one of its own spoils all that follow."""
    import torch

    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    return not any(isinstance(one, torch.AcceleratorError) for one in causes)


def _free_memory() -> bool:
    """Free what a failed worker has left in reference cycles, on the GPU too; whether that still answers."""
    import torch

    gc.collect()
    try:
        torch.cuda.empty_cache()
    except torch.AcceleratorError:
        return False
    return True


def execute(run: PreparedRun, resources: Mapping[str, float]) -> Outcome:
    """Run a prepared run of one stage or several (which need Ray); raises what `launch` does.

    Returns the (last) training's outcome.
    """
    if not is_staged(run.config):
        return launch(run, resources)
    folder, note = run.folder, run.note
    with folder.lock(), folder.handle_signals(), ending(note.tracking_uri, note.run_id):
        plan_stages(run.config, resources)  # what the last stage cannot have is said before the first one
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
    from cosa_dist.inference.trained import choose

    masks = run.folder.beside(MASKS).path
    labelled = run_labelling(first, masks, config.pseudo_masks, resources, parent_run_id=run.note.run_id)
    log.info("pseudo-masks: %s", json.dumps({key: labelled.quality[key] for key in ("miou", "ignored")}))
    _raise_if_stop_requested(run)
    log.info("stage two: segmenter on the pseudo-masks")
    weights = config.model.weights
    if config.stage_one.start == "encoder":
        weights = str(choose(first, network=config.pseudo_masks.chosen_network).encoder)
    outcome = _train_stage(run, TWO, stage_two_config(config, labelled.shards, weights), resources)
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
