"""How many workers Ray Train starts, and how long it may look for a place for them.

Ray Train would try for ever to place workers that find no room, and an elastic run would take any number of
workers, of which some do not divide the global batch. Its scaling policy decides both; it is internal to Ray
(`ray.train.v2._internal`, `_count_possible_workers`, `_initialize_and_run_controller`,
`_register_sigint_handler`). This is the only module that uses these names; tests/distributed/test_scaling.py
checks that the installed Ray has them.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, cast

import ray
import ray.exceptions
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2.api.config import ScalingConfig

from cosa_dist.distributed.plan import WorkerPlan, node_resources, placement_message


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


class ElasticWorkers(_WithDeadline, ElasticScalingPolicy):
    """As many workers as the nodes hold, of the numbers that divide the global batch."""

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((number for number in self.clock.plan.numbers if number <= possible), default=0)


class PlannedTrainer(TorchTrainer):
    """A `TorchTrainer` with one of these policies, which leaves Ctrl-C to the launcher."""

    def __init__(self, *arguments: Any, plan: WorkerPlan, deadline: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.clock = PlacementClock(plan, deadline)
        self._controller: Any = None

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        kind = ElasticWorkers if self.clock.plan.numbers else FixedWorkers
        # mypy sees the classes of the old Ray Train.
        policy: ScalingPolicy = kind(cast(ScalingConfig, self.scaling_config), self.clock)
        return cast(Any, super())._initialize_and_run_controller(**{**parts, "scaling_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the handler of the launcher in place; Ray's own would end the driver with exit code 0."""
        self._controller = controller

    def abort(self) -> None:
        """End the workers and take back what was reserved for them, which Ray would keep for minutes."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._controller.abort.remote(), timeout=10)
