"""What a run asks of the cluster, counted before anything starts: workers, resources, and the batch's shares.

The global batch is the only batch setting: per-worker batch and micro-batch follow from the number of
workers, or the run is refused with the numbers; a run that does not say how many takes the most GPUs that
divide its batch. Each worker needs its CPUs (and a GPU) on one node, so workers are counted node by node: two
nodes of three free CPUs do not hold a worker that needs four.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import DataConfig, RunConfig
from cosa_dist.data.reading.order import micro_batch

Resources = Mapping[str, float]
FEWEST_CPUS = 6
"""CPUs of a GPU's worker below which the loader is likely to hold it back"""
NOT_LOADING = 2
"""of these, not for loader processes: the training process and what a node does besides"""
MOST_LOADERS, LOADERS = 16, 2
"""loader processes of `data.loader_workers auto`: most beside a GPU, and those beside a few CPUs"""


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run and what each of them gets."""

    workers: int
    """their number; of an elastic run, the largest one"""
    use_gpu: bool
    cpus_per_worker: float
    micro_batch_size: int
    """images at a time; of an elastic run at most, as its parts follow from the workers that are there"""
    numbers: tuple[int, ...] = ()
    """numbers of workers that an elastic run may have, ascending; empty for a fixed number"""
    gpus: int = 0
    """GPUs of the cluster, of which there may be more than workers"""
    loaders: int = 0
    """loader processes of each worker"""
    global_batch: int = 0
    """images of a step over all workers"""

    @property
    def fewest(self) -> int:
        """Workers without which the run does not start."""
        return self.numbers[0] if self.numbers else self.workers

    def describe(self) -> str:
        """The plan in one line; it says why GPUs are left over."""
        part = self.global_batch // self.workers
        count = f"{self.fewest} to {self.workers}" if self.numbers else f"{self.workers}"
        spare = "" if self.workers >= self.gpus else f" of {self.gpus}"
        device = f"GPU(s){spare}" if self.use_gpu else "worker(s) without a GPU"
        parts = [f"{part} of {self.global_batch} picture(s) a step each"]
        if self.micro_batch_size < part:
            parts.append(f"{self.micro_batch_size} at a time")
        parts.append(f"{self.cpus_per_worker:g} CPU(s) with {self.loaders} loader process(es) each")
        line = f"{count} {device}: {', '.join(parts)}"
        if self.use_gpu and spare and not self.numbers:
            line += f"; more cannot share training.global_batch_size {self.global_batch} evenly (docs/gpu.md)"
        return line

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What one worker reserves on its node."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})


def largest_micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """The largest micro-batch that divides the per-worker batch and is not above `wanted` (0: no limit)."""
    per_worker = micro_batch(global_batch, workers, 0)
    return max(n for n in range(1, min(wanted or per_worker, per_worker) + 1) if per_worker % n == 0)


def most_workers(global_batch: int, gpus: int, wanted: int) -> int:
    """The most of some GPUs that share a batch evenly, in micro-batches of `wanted` images (0: any).

    Raises `ConfigError` if not even one could.
    """
    micro_batch(global_batch, 1, wanted)
    for number in range(min(gpus, global_batch), 1, -1):
        part, rest = divmod(global_batch, number)
        if not rest and (part <= wanted or not wanted or part % wanted == 0):
            return number
    return 1


def most_at_a_time(config: RunConfig, numbers: Sequence[int]) -> int:
    """Images that a worker of an elastic run computes at a time, whatever the number of workers.

    Those of its part at the largest number: a run that loses GPUs then needs no more memory than before.
    """
    if config.training.micro_batch_size:
        return config.training.micro_batch_size
    batch_norm = config.kind == "segmenter" and config.segmenter.decoder_norm == "batch"
    return max(config.training.global_batch_size // numbers[-1], 2 if batch_norm else 1)


def check_batch_norm(config: RunConfig, workers: Iterable[int], use_gpu: bool, wanted: int) -> None:
    """Refuse passes of a single image through a batch norm that sees no others.

    UPerNet pools each image to one cell, of which there is no variance. GPUs share their statistics.
    """
    if config.kind != "segmenter" or config.segmenter.decoder_norm != "batch":
        return
    batch = config.training.global_batch_size
    for number in workers:
        if largest_micro_batch(batch, number, wanted) == 1 and not (use_gpu and number > 1):
            raise ConfigError(
                f"segmenter.decoder_norm batch needs two pictures or more in a pass, and {number} worker(s) "
                f"would see one at a time (training.global_batch_size {batch}, training.micro_batch_size "
                f"{config.training.micro_batch_size}): set segmenter.decoder_norm to group, "
                "or take a larger training.micro_batch_size or training.global_batch_size"
            )


def check_batch_early(config: RunConfig) -> None:
    """Check how the batch is divided, as far as it is sure before the cluster is known."""
    elastic, workers = elastic_numbers(config), config.distributed.workers
    wanted = most_at_a_time(config, elastic) if elastic else config.training.micro_batch_size
    if not elastic:
        micro_batch(config.training.global_batch_size, workers or 1, wanted)
    if config.distributed.device == "cpu" or workers == 1:
        check_batch_norm(config, elastic or (workers or 1,), False, wanted)


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
    # Workers whose number and size are given may be placed on nodes that an autoscaler has yet to start.
    if use_gpu and not gpus and not (settings.workers and settings.cpus_per_worker):
        raise ConfigError(
            "distributed.device gpu: the Ray cluster has no GPU (where it starts nodes on demand, give "
            "distributed.workers and distributed.cpus_per_worker)"
        )
    batch, numbers, wanted = training.global_batch_size, elastic_numbers(config), training.micro_batch_size
    workers = settings.workers or (most_workers(batch, gpus, wanted) if use_gpu else 1)
    if numbers:
        workers, micro = numbers[-1], most_at_a_time(config, numbers)
    else:
        micro = micro_batch(batch, workers, wanted)
    check_batch_norm(config, numbers or (workers,), use_gpu, micro)
    cpus = settings.cpus_per_worker or even_share(use_gpu, workers, nodes or [resources])
    loaders = loader_processes(config.data, cpus, use_gpu)
    return WorkerPlan(workers, use_gpu, cpus, micro, numbers, gpus if use_gpu else 0, loaders, batch)


def loader_processes(data: DataConfig, cpus: float, use_gpu: bool) -> int:
    """Loader processes of a worker with so many CPUs: those asked for, or (`auto`) as many as suit.

    A GPU gets all that its CPUs allow, as it would wait for its pictures; a network on the CPU takes far
    longer for a picture than its loader does.
    """
    if data.loader_workers != "auto":
        return data.loader_workers
    return max(LOADERS, min(MOST_LOADERS, int(cpus) - NOT_LOADING)) if use_gpu else LOADERS


def few_cpus(cpus: float) -> str:
    """What to say where the worker of a GPU gets so few CPUs."""
    return (
        f"{cpus:g} CPU(s) for each GPU: its loader may not keep up (train/loader_wait_share in the curves); "
        f"training wants {FEWEST_CPUS} or more, better 12"
    )


def described_nodes(text: str) -> list[dict[str, float]]:
    """The nodes of a machine that is described as NODESxGPUSxCPUS, GPUs and CPUs of one node: `4x8x96`.

    Raises `ConfigError` for another form, or no node or CPU.
    """
    words = text.lower().split("x")
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--plan {text}: give NODESxGPUSxCPUS, the last two of one node, such as 4x8x96")
    nodes, gpus, cpus = map(int, words)
    if not nodes or not cpus:
        raise ConfigError(f"--plan {text}: a machine has a node and a CPU at least")
    return [{"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})] * nodes


def total(nodes: Iterable[Resources]) -> dict[str, float]:
    """CPUs and GPUs of all nodes."""
    nodes = list(nodes)
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}


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


def check_room(plan: WorkerPlan, nodes: Sequence[Resources]) -> None:
    """Raise `ConfigError` if these nodes do not hold the plan's fewest workers."""
    if workers_that_fit(plan.resources_per_worker, nodes) < plan.fewest:
        raise ConfigError(
            f"{_shortage(plan, nodes, 'this machine')}; lower distributed.workers or "
            "distributed.cpus_per_worker, or take a larger machine"
        )


def placement_message(plan: WorkerPlan, nodes: Sequence[Resources], seconds: float) -> str:
    """One line for a run that found no place: what it asked for and what is there."""
    return (
        f"{_shortage(plan, nodes, 'the Ray cluster')}, after {seconds:g} s; lower distributed.workers or "
        "distributed.cpus_per_worker, or raise distributed.placement_deadline"
    )


def _shortage(plan: WorkerPlan, nodes: Sequence[Resources], place: str) -> str:
    need = plan.resources_per_worker
    asked = ", ".join(f"{amount * plan.fewest:g} {name}" for name, amount in need.items())
    each = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    found = ", ".join(f"{sum(node.get(name, 0.0) for node in nodes):g} {name}" for name in need)
    return (
        f"the run needs {asked} ({plan.fewest} workers of {each} each), {place} has {found} on "
        f"{len(nodes)} node(s), which hold {workers_that_fit(need, nodes)} such workers"
    )


def node_resources() -> list[dict[str, float]]:
    """Total resources of each living node of the initialised Ray cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def await_resources(plan: WorkerPlan, deadline: float) -> None:
    """Wait until the cluster holds the plan's fewest workers; `ConfigError` after `deadline` seconds.

    Meanwhile Ray is asked for them, so that a cluster which starts its nodes on demand does so.
    """
    if workers_that_fit(plan.resources_per_worker, node_resources()) >= plan.fewest:
        return
    end = time.monotonic() + deadline
    with _asked_for(plan):
        while workers_that_fit(plan.resources_per_worker, nodes := node_resources()) < plan.fewest:
            if time.monotonic() >= end:
                raise ConfigError(placement_message(plan, nodes, deadline))
            time.sleep(1.0)


@contextmanager
def _asked_for(plan: WorkerPlan) -> Iterator[None]:
    """Hold a request for the plan's fewest workers: an autoscaler hears of nothing else."""
    from ray.util import placement_group, remove_placement_group

    asked = placement_group([plan.resources_per_worker] * plan.fewest, strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(asked)
