"""From a prepared run to a finished one: a Ray Train `TorchTrainer` around the workers.

The run's own folder owns the checkpoints; Ray gets metrics only. Each launch has a Ray name of its own, as
Ray would otherwise take a finished run of the same name for the result. An error that would come again
(bad data, a loss that is not finite) is written to the run folder by the worker that met it, and the
restarted workers return at once instead of repeating it. Whatever happens to a run, its tracking run gets
its status here, where the driver is told so in time; a driver that is killed leaves that to `--resume`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig

from cosa_dist.distributed.interruption import STOPPED, RunStoppedError, listening_to_signals, sole_driver
from cosa_dist.distributed.plan import WorkerPlan, await_resources, node_resources, plan_workers
from cosa_dist.distributed.prepare import PreparedRun, mark_finished
from cosa_dist.distributed.ray_worker import ray_worker
from cosa_dist.distributed.scaling import PlannedTrainer
from cosa_dist.distributed.sweep.trials import is_stopped
from cosa_dist.distributed.task import FAILURE, WorkerTask
from cosa_dist.evaluation.report import EvalReport, read_reports
from cosa_dist.tracking.mlflow_runs import Status, finish_run

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


def _trainer(run: PreparedRun, plan: WorkerPlan, callbacks: Sequence[Any]) -> PlannedTrainer:
    settings = run.config.distributed
    task = WorkerTask(
        config=run.config.model_dump(mode="json"),
        folder=str(run.folder),
        tracking_uri=run.tracking_uri,
        run_id=run.run_id,
        use_gpu=plan.use_gpu,
        micro_batch_size=plan.micro_batch_size,
        cpus=int(plan.cpus_per_worker),
    )
    return PlannedTrainer(
        ray_worker,
        plan=plan,
        deadline=settings.placement_deadline,
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
            storage_path=str(run.folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def _cause(error: BaseException, folder: Path) -> str:
    """The first cause of a failed run in one line."""
    noted = folder / FAILURE
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip()
    # What the controller met, such as a deadline, speaks for itself.
    error = getattr(error, "controller_failure", None) or error
    failures = getattr(error, "worker_failures", None) or {}
    for rank in sorted(failures):
        cause = failures[rank]
        cause = getattr(cause, "_base_exc", cause)
        return f"worker {rank}: {type(cause).__name__}: {' '.join(str(cause).split())[:600]}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def launch(run: PreparedRun, resources: dict[str, float], callbacks: Sequence[Any] = ()) -> Outcome:
    """Run a prepared run on the initialised Ray cluster.

    Args:
        run: what `prepare_run` or `reopen` gave.
        resources: total resources of the cluster.
        callbacks: Ray Train user callbacks (a sweep's reporting).

    Raises:
        ConfigError: the cluster cannot hold the run, or another driver has it.
        RunFailedError: the run failed; its tracking run is marked so.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or the workers stopped as asked (`RunStoppedError`); the tracking
            run is marked KILLED.
    """
    with sole_driver(run.folder), listening_to_signals(run.folder):
        status: Status = "FAILED"
        trainer: PlannedTrainer | None = None
        try:
            plan = plan_workers(run.config, resources, node_resources())
            await_resources(plan, run.config.distributed.placement_deadline)
            trainer = _trainer(run, plan, callbacks)
            trainer.fit()
            _heed_notes(run.folder)
            mark_finished(run.folder)
            status = "FINISHED"
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise RunFailedError(_cause(error, run.folder)) from None
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if status == "FAILED" and is_stopped(run.folder):
                status = "KILLED"
            if run.run_id:
                finish_run(run.tracking_uri, run.run_id, status)
            if status == "KILLED" and trainer is not None:
                trainer.abort()
    return Outcome(run.folder, run.tracking_uri, run.run_id, read_reports(run.folder))


def _heed_notes(folder: Path) -> None:
    """Raise what the workers, which all returned, have noted."""
    if (folder / FAILURE).is_file():
        raise RunFailedError(_cause(RuntimeError(), folder))
    if (folder / STOPPED).is_file():
        raise RunStoppedError((folder / STOPPED).read_text(encoding="utf-8").strip())
