"""Ray Train for a planned run: how many workers it starts, and how long it may look for a place for them.

Ray Train would try for ever to place workers that find no room, and an elastic run would take any number of
workers, of which some do not divide the global batch. Its scaling policy decides both; it is internal to Ray
(`ray.train.v2._internal`, and private methods of the trainer and the policies). This is the only module that
uses such names; tests/distributed/test_scaling.py checks that the installed Ray has every overridden method.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2.api.config import ScalingConfig

from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.cluster import is_alone
from cosa_dist.distributed.plan import WorkerPlan, node_resources, placement_message
from cosa_dist.distributed.ray_worker import in_one_line, ray_worker
from cosa_dist.distributed.run_folder import RunFailedError, RunFolder, WorkerTask

RESIZE_SECONDS = 20.0
"""an elastic run looks so often whether it could have more workers"""


class PlacementError(RuntimeError):
    """No place for the workers within the deadline; the message has the arithmetic."""


class PlacementClock:
    """Measures how long the workers of a plan have been without a place."""

    def __init__(self, plan: WorkerPlan, deadline: float) -> None:
        self.plan = plan
        self.deadline = deadline
        self._since: float | None = None

    def waiting(self) -> None:
        """Note that the workers do not run; `PlacementError` if so for longer than the deadline."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > self.deadline:
            free = ray.available_resources()
            unused = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in self.plan.resources_per_worker)
            line = placement_message(self.plan, node_resources(), round(now - self._since))
            raise PlacementError(f"{line}; free at the moment: {unused}")

    def placed(self) -> None:
        """Note that the workers run."""
        self._since = None


class _WithDeadline:
    """What both policies add to Ray's: the clock runs while the workers have no place."""

    clock: PlacementClock

    def __init__(self, config: ScalingConfig, clock: PlacementClock) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of Ray's policy, which stands beside this class
        self.clock = clock

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Try to place the workers, or give up."""
        self.clock.waiting()
        return cast(Any, super()).make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> ScalingDecision:
        """Let them run, or (elastic ones) restart them in another number."""
        self.clock.placed()
        return cast(Any, super()).make_decision_for_running_worker_group(*state, **named)


class FixedWorkers(_WithDeadline, FixedScalingPolicy):
    """A fixed number of workers, given up after the deadline."""


class AloneWorkers(FixedWorkers):
    """The same on a cluster of this run alone: there is no autoscaler that would have to hear of it."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Register nothing: that would start a process of Ray's."""

    def _maybe_send_resource_request(self) -> None:
        pass


class ElasticWorkers(_WithDeadline, ElasticScalingPolicy):
    """As many workers as the nodes hold, of the numbers that divide the global batch."""

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((number for number in self.clock.plan.numbers if number <= possible), default=0)


class PlannedTrainer(TorchTrainer):
    """A `TorchTrainer` for a planned run with one of these policies, which leaves Ctrl-C to the launcher.

    The run's own folder owns the checkpoints; Ray gets metrics only. Each trainer has a Ray name of its own,
    as Ray would otherwise take a finished run of the same name for the result.
    """

    def __init__(
        self, task: WorkerTask, plan: WorkerPlan, config: RunConfig, callbacks: Sequence[Any]
    ) -> None:
        self.alone = is_alone()
        self.clock = PlacementClock(plan, config.distributed.placement_deadline)
        self.folder = RunFolder(Path(task.folder))
        self._controller: Any = None
        super().__init__(
            ray_worker,
            train_loop_config=asdict(task),
            torch_config=TorchConfig(timeout_s=int(config.distributed.timeout)),
            scaling_config=ScalingConfig(
                num_workers=(plan.fewest, plan.workers) if plan.numbers else plan.workers,
                use_gpu=plan.use_gpu,
                resources_per_worker=plan.resources_per_worker,
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the class of the old Ray Train
                name=f"{config.name}-{time.time_ns():x}",
                storage_path=str(self.folder.path / "ray"),
                failure_config=ray.train.FailureConfig(max_failures=config.distributed.max_failures),
                callbacks=list(callbacks),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )

    def fit(self) -> Any:
        """Train to the end; `RunFailedError` with the first cause if the workers or the controller failed."""
        try:
            return super().fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise RunFailedError(self.folder.failure or _first_cause(error)) from None

    def _create_default_callbacks(self) -> list[Any]:
        """Ray's callbacks, less those that would start a process for nothing.

        A run has no data set of Ray Data. A cluster that ends with this process needs no cleaner of
        placement groups; it would ask the dashboard, which is not there.
        """
        idle = (DatasetsCallback, PlacementGroupCleanerCallback) if self.alone else (DatasetsCallback,)
        found = cast(Any, super())._create_default_callbacks()
        return [callback for callback in found if not isinstance(callback, idle)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        fixed = AloneWorkers if self.alone else FixedWorkers
        kind = ElasticWorkers if self.clock.plan.numbers else fixed
        # mypy sees the classes of the old Ray Train.
        policy: ScalingPolicy = kind(cast(ScalingConfig, self.scaling_config), self.clock)
        return cast(Any, super())._initialize_and_run_controller(**{**parts, "scaling_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the handler of the launcher in place; Ray's own would end the driver with exit code 0."""
        self._controller = controller

    def abort(self) -> None:
        """End the workers and take back what was reserved for them, which Ray would keep for minutes."""
        if self._controller is not None:
            try:
                ray.get(self._controller.abort.remote(), timeout=10)
            except ray.exceptions.RayError:
                time.sleep(1)  # the cluster is ending, and its workers a moment after the controller


def _first_cause(error: BaseException) -> str:
    """The first cause of a failed run in one line."""
    # An error of the controller, such as a deadline, is a cause by itself.
    error, source = getattr(error, "controller_failure", None) or error, ""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if failures:
        rank = min(failures)
        error, source = getattr(failures[rank], "_base_exc", failures[rank]), f"worker {rank}: "
    return f"{source}{in_one_line(error)}"
