"""What a run asks of the cluster, counted before anything starts.

The global batch is the only batch setting; each worker's part and its micro-batches follow from the number
of workers, or the run is refused with the numbers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run and what each of them gets."""

    workers: int
    use_gpu: bool
    cpus_per_worker: float
    micro_batch_size: int


def micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """Images that a worker computes at a time.

    Args:
        global_batch: images of one optimiser step over all workers.
        workers: number of workers.
        wanted: micro-batch asked for, 0 for a worker's whole part.

    Raises:
        ConfigError: the batch cannot be cut evenly.
    """
    part, rest = divmod(global_batch, workers)
    if rest or part == 0:
        raise ConfigError(
            f"training.global_batch_size {global_batch} cannot be shared evenly by {workers} "
            f"workers; choose a multiple of {workers} or another distributed.workers"
        )
    micro = wanted or part
    if part % micro:
        raise ConfigError(
            f"training.micro_batch_size {micro} does not divide a worker's part of {part} "
            f"({global_batch} images / {workers} workers)"
        )
    return micro


def plan_workers(config: RunConfig, resources: dict[str, float]) -> WorkerPlan:
    """Decide on workers and their resources from what the cluster has.

    Args:
        config: the run.
        resources: total resources of the cluster (`CPU`, `GPU`).

    Raises:
        ConfigError: GPUs asked for where there are none, or a batch that cannot be shared.
    """
    gpus = int(resources.get("GPU", 0))
    settings = config.distributed
    use_gpu = settings.device == "gpu" or (settings.device == "auto" and gpus > 0)
    if use_gpu and not gpus:
        raise ConfigError("distributed.device gpu: the Ray cluster has no GPU")
    workers = settings.workers or (gpus if use_gpu else 1)
    cpus = settings.cpus_per_worker or max(
        1.0, resources.get("CPU", 1) // max(workers, gpus if use_gpu else 1)
    )
    micro = micro_batch(config.training.global_batch_size, workers, config.training.micro_batch_size)
    return WorkerPlan(workers, use_gpu, cpus, micro)


def await_resources(plan: WorkerPlan, deadline: float) -> None:
    """Wait until the cluster is large enough for the plan.

    Args:
        plan: what is needed.
        deadline: seconds to wait.

    Raises:
        ConfigError: after the deadline, with the resources asked for and those there.
    """
    needed = {"CPU": plan.cpus_per_worker * plan.workers}
    if plan.use_gpu:
        needed["GPU"] = plan.workers
    end = time.monotonic() + deadline
    while True:
        there = ray.cluster_resources()
        if all(there.get(name, 0) >= amount for name, amount in needed.items()):
            return
        if time.monotonic() >= end:
            asked = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
            found = ", ".join(f"{there.get(name, 0):g} {name}" for name in needed)
            raise ConfigError(
                f"the run needs {asked} ({plan.workers} workers), the Ray cluster has {found} after "
                f"{deadline:g} s; lower distributed.workers or distributed.cpus_per_worker"
            )
        time.sleep(1.0)
