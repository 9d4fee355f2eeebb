"""The scaling policies: a deadline for placement, and numbers of workers that divide the batch."""

from __future__ import annotations

import time

import pytest
from ray.train.v2.api.config import ScalingConfig

from cosa_dist.distributed import scaling
from cosa_dist.distributed.plan import WorkerPlan
from cosa_dist.distributed.scaling import (
    AloneWorkers,
    ElasticWorkers,
    FixedWorkers,
    PlacementClock,
    PlacementError,
    PlannedTrainer,
)

PLAN = WorkerPlan(4, False, 2.0, 0, (1, 2, 4))


@pytest.mark.parametrize(
    ("cpus", "workers"), [((2, 2, 3), 2), ((4, 4), 4), ((2,), 1), ((1, 1), 0), ((64,), 4)]
)
def test_an_elastic_run_takes_the_largest_number_that_divides(cpus, workers):
    config = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2.0})
    policy = ElasticWorkers(config, PlacementClock(PLAN, 1.0))
    nodes = {str(number): {"CPU": float(cpu)} for number, cpu in enumerate(cpus)}
    assert policy._count_possible_workers(nodes) == workers


def test_the_deadline_counts_from_the_last_time_the_workers_ran(monkeypatch):
    monkeypatch.setattr(scaling, "node_resources", lambda: [{"CPU": 1.0}, {"CPU": 1.0}])
    monkeypatch.setattr(scaling.ray, "available_resources", lambda: {"CPU": 0.5})
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = PlacementClock(PLAN, 30.0)
    clock.waiting()
    now = 129.0
    clock.waiting()
    clock.placed()
    now = 200.0
    clock.waiting()
    now = 231.0
    with pytest.raises(PlacementError) as caught:
        clock.waiting()
    assert str(caught.value) == (
        "the run needs 2 CPU (1 workers of 2 CPU each), the Ray cluster has 2 CPU on 2 node(s), which hold 0 "
        "such workers, after 31 s; lower distributed.workers or distributed.cpus_per_worker, or raise "
        "distributed.placement_deadline; free at the moment: 0.5 CPU"
    )


@pytest.mark.parametrize("kind", [FixedWorkers, AloneWorkers, ElasticWorkers, PlannedTrainer])
def test_the_installed_ray_has_every_method_that_is_overridden(kind):
    ours = [base for base in kind.__mro__ if base.__module__ == scaling.__name__]
    rays = [base for base in kind.__mro__ if base.__module__.startswith("ray.")]
    overridden = {name for base in ours for name, value in vars(base).items() if callable(value)} - {"abort"}
    assert {name for name in overridden if not any(name in vars(base) for base in rays)} == set()
