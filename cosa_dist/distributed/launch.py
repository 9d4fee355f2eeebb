"""From a prepared run to a finished one: a Ray Train `TorchTrainer` around the workers, or stage after stage.

The run's own folder owns the checkpoints; Ray gets metrics only. Each launch has a Ray name of its own, as
Ray would otherwise take a finished run of the same name for the result. Whatever happens to a run, its
tracking run gets its status here; a driver that is killed leaves that to `--resume`.

A multi-stage run `NAME` owns three others beside it, `NAME-stage-one` (CoSA on image tags),
`NAME-pseudo-masks` and `NAME-stage-two` (a segmenter), which are ordinary runs that anything else may read.
Whatever ends it early, `--resume` goes on: a finished stage is not repeated, an interrupted one is resumed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig

from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed import cluster
from cosa_dist.distributed.plan import WorkerPlan, await_resources, node_resources, plan_workers
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
from cosa_dist.distributed.ray_worker import ray_worker
from cosa_dist.distributed.run_folder import RunFolder, RunNote, RunStoppedError, WorkerTask
from cosa_dist.distributed.scaling import PlannedTrainer
from cosa_dist.evaluation.report import EvalReport, better_report, read_reports
from cosa_dist.tracking.mlflow_runs import Status, ending, finish_run
from cosa_dist.tracking.tracker import Tracker

RESIZE_SECONDS = 20.0
"""an elastic run looks so often whether it could have more workers"""
log = logging.getLogger(__name__)


class RunFailedError(RuntimeError):
    """A run that did not come to its end; the message is the first cause."""


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
    """Run a prepared run on the initialised Ray cluster; `callbacks` are Ray Train's user callbacks.

    Raises `ConfigError` if the cluster cannot hold the run or another driver has it, `RunFailedError` if it
    failed, and KeyboardInterrupt after Ctrl-C, SIGTERM, or a stop that was requested (`RunStoppedError`).
    """
    folder = run.folder
    status: Status = "FAILED"
    trainer: PlannedTrainer | None = None
    with folder.lock(), folder.handle_signals():
        try:
            plan = plan_workers(run.config, resources, node_resources())
            await_resources(plan, run.config.distributed.placement_deadline)
            trainer = _trainer(run, plan, callbacks)
            trainer.fit()
            raise_recorded_failure(folder)
            folder.mark_finished()
            status = "FINISHED"
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise RunFailedError(folder.failure or _first_cause(error)) from None
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if status == "FAILED" and folder.pruned:
                status = "KILLED"  # what its dying processes met is no failure
            if run.note.run_id:
                finish_run(run.note.tracking_uri, run.note.run_id, status)
            if status == "KILLED" and trainer is not None:
                trainer.abort()
    return Outcome.read(folder, run.note)


def raise_recorded_failure(folder: RunFolder) -> None:
    """Raise what the workers recorded before they returned: a failure, or a stop that was requested."""
    if folder.failure is not None:
        raise RunFailedError(folder.failure)
    if folder.stopped_by_user is not None:
        raise RunStoppedError(folder.stopped_by_user)


def _trainer(run: PreparedRun, plan: WorkerPlan, callbacks: Sequence[Any]) -> PlannedTrainer:
    settings = run.config.distributed
    task = WorkerTask(
        config=run.config.model_dump(mode="json"),
        folder=str(run.folder.path),
        tracking_uri=run.note.tracking_uri,
        run_id=run.note.run_id,
        use_gpu=plan.use_gpu,
        micro_batch_size=plan.micro_batch_size,
        cpus=int(plan.cpus_per_worker),
    )
    return PlannedTrainer(
        ray_worker,
        plan=plan,
        deadline=settings.placement_deadline,
        alone=cluster.is_alone(),
        train_loop_config=asdict(task),
        torch_config=TorchConfig(timeout_s=int(settings.timeout)),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # as below
            num_workers=(plan.fewest, plan.workers) if plan.numbers else plan.workers,  # type: ignore[arg-type]
            use_gpu=plan.use_gpu,
            resources_per_worker=plan.resources_per_worker,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the class of the old Ray Train
            name=f"{run.config.name}-{time.time_ns():x}",
            storage_path=str(run.folder.path / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def _first_cause(error: BaseException) -> str:
    """The first cause of a failed run in one line."""
    # An error of the controller, such as a deadline, is a cause by itself.
    error, source = getattr(error, "controller_failure", None) or error, ""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if failures:
        rank = min(failures)
        error, source = getattr(failures[rank], "_base_exc", failures[rank]), f"worker {rank}: "
    return f"{source}{type(error).__name__}: {' '.join(str(error).split())[:600]}"


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
