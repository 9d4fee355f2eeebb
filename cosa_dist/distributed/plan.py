"""What a run asks of the cluster, counted before anything starts.

Each worker needs its CPUs (and a GPU) on one node, so workers are counted node by node: two nodes with
three free CPUs each do not hold a worker that needs four.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.order import micro_batch
from cosa_dist.distributed.sharing import check_batch_norm, elastic_numbers

Choose = Callable[[Iterable[int]], int]
__all__ = [
    "WorkerPlan",
    "await_resources",
    "micro_batch",
    "plan_workers",
    "trials_that_fit",
    "workers_that_fit",
]


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run and what each of them gets."""

    workers: int
    """their number; of an elastic run, the largest one"""
    use_gpu: bool
    cpus_per_worker: float
    micro_batch_size: int
    """0 for an elastic run: it follows from the number of workers that are there"""
    numbers: tuple[int, ...] = ()
    """numbers of workers that an elastic run may have, ascending; empty for a fixed number"""

    @property
    def fewest(self) -> int:
        """Workers without which the run does not start."""
        return self.numbers[0] if self.numbers else self.workers

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What one worker reserves on its node."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})


def plan_workers(
    config: RunConfig, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]] = ()
) -> WorkerPlan:
    """Decide on workers and their resources from what the cluster has.

    Args:
        config: the run.
        resources: total resources of the cluster (`CPU`, `GPU`).
        nodes: those of each node, if known: a worker gets no more CPUs than a node has, and workers with a
            GPU share those of nodes with GPUs alone.

    Raises:
        ConfigError: GPUs asked for where there are none, or a batch that cannot be shared so.
    """
    gpus = int(resources.get("GPU", 0))
    settings = config.distributed
    use_gpu = settings.device == "gpu" or (settings.device == "auto" and gpus > 0)
    if use_gpu and not gpus:
        raise ConfigError("distributed.device gpu: the Ray cluster has no GPU")
    numbers = elastic_numbers(config)
    workers = numbers[-1] if numbers else settings.workers or (gpus if use_gpu else 1)
    cpus = settings.cpus_per_worker or even_share(use_gpu, workers, nodes or [resources])
    micro = 0
    if not numbers:
        micro = micro_batch(config.training.global_batch_size, workers, config.training.micro_batch_size)
    check_batch_norm(config, numbers or (workers,), use_gpu)
    return WorkerPlan(workers, use_gpu, cpus, micro, numbers)


def even_share(use_gpu: bool, workers: int, nodes: Sequence[Mapping[str, float]], drivers: int = 0) -> float:
    """CPUs of each worker if they share all that there are, at least 1.

    Args:
        use_gpu: workers have a GPU each, so that the node with the fewest CPUs for each GPU decides.
        workers: how many share, without GPUs.
        nodes: resources of each node.
        drivers: CPUs left to the drivers of trials: for every GPU, as a trial may have a single one; without
            GPUs, from the whole.
    """
    if use_gpu:
        return max(1.0, min(node.get("CPU", 0) // node["GPU"] - drivers for node in nodes if node.get("GPU")))
    cpus = [node.get("CPU", 1) for node in nodes]
    return max(1.0, min((sum(cpus) - drivers) // workers, max(cpus)))


def workers_that_fit(need: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers of equal `need` a list of nodes holds, each worker on one node."""
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in need.items())) for node in nodes)


def trials_that_fit(
    need: Mapping[str, float], workers: int, nodes: Sequence[Mapping[str, float]], choose: Choose = min
) -> int:
    """How many trials, each with a driver of one CPU and its workers, a list of nodes holds at once.

    Args:
        need: of each worker, which lies on one node.
        workers: of each trial.
        nodes: resources of each node.
        choose: `min` for drivers that lie where they do most harm, as Ray places them before the workers;
            `max` for those that lie best.
    """
    most = workers_that_fit(need, nodes) // workers
    # Entry n: how many workers fit beside n drivers.
    beside = [0]
    for node in nodes:
        free = int(node.get("CPU", 0.0))
        room = [workers_that_fit(need, [{**node, "CPU": free - taken}]) for taken in range(free + 1)]
        beside = [
            choose(beside[n - d] + room[d] for d in range(len(room)) if 0 <= n - d < len(beside))
            for n in range(min(most, len(beside) + free - 1) + 1)
        ]
    return max((n for n, fit in enumerate(beside) if fit >= n * workers), default=0)


def placement_message(plan: WorkerPlan, nodes: Sequence[Mapping[str, float]], seconds: float) -> str:
    """One line for a run that found no place: what it asked for and what is there."""
    need = plan.resources_per_worker
    asked = ", ".join(f"{amount * plan.fewest:g} {name}" for name, amount in need.items())
    each = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    found = ", ".join(f"{sum(node.get(name, 0.0) for node in nodes):g} {name}" for name in need)
    return (
        f"the run needs {asked} ({plan.fewest} workers of {each} each), the Ray cluster has {found} on "
        f"{len(nodes)} node(s), which hold {workers_that_fit(need, nodes)} such workers, after "
        f"{seconds:g} s; lower distributed.workers or distributed.cpus_per_worker, or raise "
        "distributed.placement_deadline"
    )


def node_resources() -> list[dict[str, float]]:
    """Total resources of each living node of the initialised Ray cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def await_resources(plan: WorkerPlan, deadline: float) -> None:
    """Wait until the cluster is large enough for the plan (for its fewest workers).

    Args:
        plan: what is needed.
        deadline: seconds to wait.

    Raises:
        ConfigError: after the deadline, with the resources asked for and those there.
    """
    end = time.monotonic() + deadline
    while True:
        nodes = node_resources()
        if workers_that_fit(plan.resources_per_worker, nodes) >= plan.fewest:
            return
        if time.monotonic() >= end:
            raise ConfigError(placement_message(plan, nodes, deadline))
        time.sleep(1.0)
