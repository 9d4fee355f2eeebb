"""From a prepared run to a finished one: a Ray Train `TorchTrainer` around the workers.

The run's own folder owns the checkpoints; Ray gets metrics only. Each launch has a Ray name of its own, as
Ray would otherwise take a finished run of the same name for the result. An error that would come again
(bad data, a loss that is not finite) is written to the run folder by the worker that met it, and the
restarted workers return at once instead of repeating it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cosa_dist.distributed.plan import WorkerPlan, await_resources, plan_workers
from cosa_dist.distributed.preparation import PreparedRun, mark_finished
from cosa_dist.distributed.worker import WorkerTask, ray_worker
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.tracking.mlflow_tracker import finish_run
from cosa_dist.tracking.tracker import Status

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


def _trainer(run: PreparedRun, plan: WorkerPlan, callbacks: Sequence[Any]) -> TorchTrainer:
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
    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": 1.0} if plan.use_gpu else {})
    return TorchTrainer(
        ray_worker,
        train_loop_config=asdict(task),
        torch_config=TorchConfig(timeout_s=int(settings.timeout)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.use_gpu, resources_per_worker=resources
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
    noted = folder / "failure.txt"
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip()
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
        ConfigError: the cluster cannot hold the run.
        RunFailedError: the run failed; its tracking run is marked so.
    """
    status: Status = "FAILED"
    try:
        plan = plan_workers(run.config, resources)
        await_resources(plan, run.config.distributed.placement_deadline)
        _trainer(run, plan, callbacks).fit()
        if (run.folder / "failure.txt").is_file():
            raise RunFailedError(_cause(RuntimeError(), run.folder))
        mark_finished(run.folder)
        status = "FINISHED"
    except ray.train.TrainingFailedError as error:
        raise RunFailedError(_cause(error, run.folder)) from None
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if run.run_id:
            finish_run(run.tracking_uri, run.run_id, status)
    return Outcome(run.folder, run.tracking_uri, run.run_id, read_reports(run.folder))


def read_reports(folder: Path) -> dict[str, EvalReport]:
    """The final reports that a run left in its folder, by network."""
    reports = {}
    for path in sorted(folder.glob("report_*.json"), reverse=True):
        report = EvalReport.from_json(path.read_text(encoding="utf-8"))
        reports[report.network] = report
    return reports
