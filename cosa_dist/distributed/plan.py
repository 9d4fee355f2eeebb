"""What a run asks of the cluster, counted before anything starts: workers, resources, and the batch's shares.

The global batch is the only batch setting: per-worker batch and micro-batch follow from the number of
workers, or the run is refused with the numbers. Each worker needs its CPUs (and a GPU) on one node, so
workers are counted node by node: two nodes of three free CPUs do not hold a worker that needs four.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.order import micro_batch

Resources = Mapping[str, float]


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


def largest_micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """The largest micro-batch that divides the per-worker batch and is not above `wanted` (0: no limit)."""
    per_worker = micro_batch(global_batch, workers, 0)
    return max(n for n in range(1, min(wanted or per_worker, per_worker) + 1) if per_worker % n == 0)


def check_batch_norm(config: RunConfig, workers: Iterable[int], use_gpu: bool) -> None:
    """Refuse passes of a single image through a batch norm that sees no others.

    UPerNet pools each image to one cell, of which there is no variance. GPUs share their statistics.
    """
    if config.kind != "segmenter" or config.segmenter.decoder_norm != "batch":
        return
    batch, wanted = config.training.global_batch_size, config.training.micro_batch_size
    for number in workers:
        if largest_micro_batch(batch, number, wanted) == 1 and not (use_gpu and number > 1):
            raise ConfigError(
                f"segmenter.decoder_norm batch needs two pictures or more in a pass, and {number} worker(s) "
                f"would see one at a time (training.global_batch_size {batch}, training.micro_batch_size "
                f"{wanted}): set segmenter.decoder_norm to group, "
                "or take a larger training.micro_batch_size or training.global_batch_size"
            )


def check_batch_early(config: RunConfig) -> None:
    """Check how the batch is divided, as far as it is sure before the cluster is known."""
    elastic, workers = elastic_numbers(config), config.distributed.workers
    if workers and not elastic:
        micro_batch(config.training.global_batch_size, workers, config.training.micro_batch_size)
    if config.distributed.device == "cpu" or workers == 1:
        check_batch_norm(config, elastic or (workers or 1,), use_gpu=False)


def elastic_numbers(config: RunConfig) -> tuple[int, ...]:
    """The numbers of workers that an elastic run may have, ascending; empty for a fixed number.

    Raises `ConfigError` if no number within the bounds divides the batch, or the samples would depend on it.
    """
    fewest, most = config.distributed.fewest_workers, config.distributed.workers
    if not 0 < fewest < most:
        return ()
    if config.data.reading == "streaming":
        raise ConfigError(
            f"distributed.workers [{fewest}, {most}]: with data.reading streaming the samples depend on the "
            "number of workers; set data.reading to mapped, or one number of workers"
        )
    batch = config.training.global_batch_size
    numbers = tuple(number for number in range(fewest, most + 1) if batch % number == 0)
    if not numbers:
        raise ConfigError(
            f"training.global_batch_size {batch} cannot be shared evenly by any number of workers in "
            f"distributed.workers [{fewest}, {most}]; choose bounds that hold a divisor of {batch}"
        )
    return numbers


def plan_workers(config: RunConfig, resources: Resources, nodes: Sequence[Resources] = ()) -> WorkerPlan:
    """Decide on workers and their resources from the cluster's totals (`CPU`, `GPU`) and its nodes, if known.

    Raises `ConfigError` for GPUs where there are none, or a batch that cannot be divided so.
    """
    gpus = int(resources.get("GPU", 0))
    settings, training = config.distributed, config.training
    use_gpu = settings.device == "gpu" or (settings.device == "auto" and gpus > 0)
    if use_gpu and not gpus:
        raise ConfigError("distributed.device gpu: the Ray cluster has no GPU")
    numbers = elastic_numbers(config)
    workers = numbers[-1] if numbers else settings.workers or (gpus if use_gpu else 1)
    cpus = settings.cpus_per_worker or even_share(use_gpu, workers, nodes or [resources])
    micro = 0 if numbers else micro_batch(training.global_batch_size, workers, training.micro_batch_size)
    check_batch_norm(config, numbers or (workers,), use_gpu)
    return WorkerPlan(workers, use_gpu, cpus, micro, numbers)


def even_share(use_gpu: bool, workers: int, nodes: Sequence[Resources], drivers: int = 0) -> float:
    """CPUs of each worker if all that there are is divided, at least 1.

    With GPUs the node with the fewest CPUs for each GPU decides. `drivers` CPUs are left to the drivers of
    trials: for every GPU, as a trial may have a single one; without GPUs, from the whole.
    """
    if use_gpu:
        return max(1.0, min(node.get("CPU", 0) // node["GPU"] - drivers for node in nodes if node.get("GPU")))
    cpus = [node.get("CPU", 1) for node in nodes]
    return max(1.0, min((sum(cpus) - drivers) // workers, max(cpus)))


def workers_that_fit(need: Resources, nodes: Sequence[Resources]) -> int:
    """How many workers of equal `need` some nodes hold, each worker on one node."""
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in need.items())) for node in nodes)


def trials_that_fit(
    need: Resources,
    workers: int,
    nodes: Sequence[Resources],
    choose: Callable[[Iterable[int]], int] = min,
) -> int:
    """How many trials, each with a driver of one CPU and workers of equal `need`, some nodes hold at once.

    `choose` is `min` for drivers that lie where they do most harm, as Ray places them before the workers, and
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


def placement_message(plan: WorkerPlan, nodes: Sequence[Resources], seconds: float) -> str:
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
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def await_resources(plan: WorkerPlan, deadline: float) -> None:
    """Wait until the cluster holds the plan's fewest workers; `ConfigError` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while workers_that_fit(plan.resources_per_worker, nodes := node_resources()) < plan.fewest:
        if time.monotonic() >= end:
            raise ConfigError(placement_message(plan, nodes, deadline))
        time.sleep(1.0)
