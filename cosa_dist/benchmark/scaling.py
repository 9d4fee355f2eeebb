"""Images per second of 1..N Ray Train workers on generated batches, each worker with its own threads.

Every worker keeps its number of images, so the global batch grows with the workers. Each number of workers is
one Ray Train run, with the process group, Accelerate and DistributedDataParallel of a training. Within
it, turn by turn, the same steps are taken without the gradients' exchange, and by one worker while the others
wait: other work on the machine meets these alike, but not two runs that come one after the other.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from cosa_dist.benchmark.measure import Report, Row, Table, in_turn, machine_facts
from cosa_dist.benchmark.workload import CO_TRAINING, WARM_UP, Workload, phase_steps, prepare
from cosa_dist.collective import barrier, rank, sum_over_ranks, world_size
from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.stopwatch import synchroniser
from cosa_dist.training import step as training
from cosa_dist.training.state import set_arithmetic


def with_global_batch(config: RunConfig, workers: int) -> RunConfig:
    """The run with `workers` times its batch."""
    batch = config.training.global_batch_size * workers
    return config.model_copy(
        update={"training": config.training.model_copy(update={"global_batch_size": batch})}
    )


def step_seconds(work: Workload, device: torch.device, rounds: int, step: int) -> dict[str, float]:
    """Median seconds of a step: all ranks, all without exchange of gradients, the first rank alone."""

    def take(context: AbstractContextManager[object]) -> None:
        with context:
            work.take(step, device)
        barrier()

    def take_alone() -> None:
        if rank() == 0:
            # Past DistributedDataParallel: the parameters of the ranks go apart, which costs no time.
            with patch.object(training, "sum_over_ranks", lambda tensor: tensor):
                replace(work, network=work.state.online).take(step, device)
        barrier()

    ways: dict[str, Callable[[], object]] = {"step": lambda: take(nullcontext())}
    if world_size() > 1:
        ways["alone"] = take_alone
        ways["without exchange"] = lambda: take(work.accelerator.no_sync(work.network))
    found = in_turn(ways, rounds, synchroniser(device))
    # A barrier ends each turn, so all ranks measure nearly the same; their mean is the step's time.
    mean = {name: statistics.median(seconds) for name, seconds in found.items()}
    total = sum_over_ranks(torch.tensor(list(mean.values()), dtype=torch.float64, device=device))
    return dict(zip(mean, (total / world_size()).tolist(), strict=True))


def scaling_worker(payload: dict[str, Any]) -> dict[str, float]:
    """What one Ray Train worker does; rank 0's result, the seconds by phase, is that of the run."""
    torch.set_num_threads(payload["threads"])
    set_arithmetic(payload["matmul"])
    config = build_config(payload["config"], "run")
    device = torch.device("cuda" if payload["use_gpu"] else "cpu")
    work = prepare(config, device, world_size(), loader=False)
    device = work.accelerator.device
    metrics = {}
    for phase, step in phase_steps(config).items():
        for name, seconds in step_seconds(work, device, payload["rounds"], step).items():
            metrics[f"{phase}/{name}"] = seconds
    return metrics


def run_workers(
    config: RunConfig, workers: int, threads: int, rounds: int, use_gpu: bool
) -> dict[str, float]:
    """Seconds by phase of one Ray Train run; Ray must be initialised. A failed worker's error is raised."""
    import ray.train
    from ray.train.torch import TorchTrainer

    payload = {
        "config": with_global_batch(config, workers).model_dump(mode="json"),
        "threads": threads,
        "rounds": rounds,
        "use_gpu": use_gpu,
        "matmul": torch.get_float32_matmul_precision(),
    }
    resources = {"CPU": float(threads)} | ({"GPU": 1.0} if use_gpu else {})
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            scaling_worker,  # type: ignore[arg-type]  # mypy sees the class of the old Ray Train
            train_loop_config=payload,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # likewise
                name=f"scaling-{workers}",
                storage_path=folder,
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )
        # mypy knows the result of the old Ray Train only, which has no such field.
        return dict(getattr(trainer.fit(), "return_value"))  # noqa: B009


def measure_scaling(config: RunConfig, workers: int, threads: int, rounds: int) -> Report:
    """Measure 1, 2, 4, ... up to `workers` workers; the run's batch is that of **each** worker here."""
    from cosa_dist.distributed.cluster import ray_cluster

    use_gpu = torch.cuda.is_available() and config.distributed.device != "cpu"
    counts = sorted({*(2**power for power in range(workers.bit_length())), workers})
    # Without the dashboard, whose processes would take their share of a small machine's cores; Ray Train
    # would then say every few seconds that it misses it.
    cpus = max(workers * threads, 2)
    with ray_cluster(num_cpus=cpus, log_to_driver=False):
        found = {count: run_workers(config, count, threads, rounds, use_gpu) for count in counts}
    facts = {
        **machine_facts(torch.device("cuda" if use_gpu else "cpu")),
        "threads": threads,
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "crop": config.data.crop_size,
        "images per worker": config.training.global_batch_size,
    }
    return Report("scaling", facts, [Table("Ray Train workers", scaling_rows(config, found))])


def scaling_rows(config: RunConfig, found: dict[int, dict[str, float]]) -> list[Row]:
    """One row per phase and number of workers, from what each run's rank 0 returned."""
    rows: list[Row] = []
    for phase in (WARM_UP, CO_TRAINING):
        alone: float | None = None
        for workers, metrics in found.items():
            seconds = metrics.get(f"{phase}/step")
            if seconds is None:
                continue
            speed = workers * config.training.global_batch_size / seconds
            alone = alone or speed
            without = metrics.get(f"{phase}/without exchange")
            first = metrics.get(f"{phase}/alone")
            rows.append(
                {
                    "phase": phase,
                    "workers": workers,
                    "images/s": speed,
                    "times the first row": speed / alone,
                    "times one in turn": None if first is None else workers * first / seconds,
                    "step s": seconds,
                    "exchange of gradients s": None if without is None else max(0.0, seconds - without),
                }
            )
    return rows
