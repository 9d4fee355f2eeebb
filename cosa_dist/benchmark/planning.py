"""The plan of a run as a report: predictions for 1..N nodes and every assumption behind them."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from cosa_dist.benchmark.machine import THIS, Machine
from cosa_dist.benchmark.matrix_rate import matrix_rate, shared_rate
from cosa_dist.benchmark.model_flops import BYTES, Footprint, footprint, step_flops
from cosa_dist.benchmark.prediction import FULL_MAPS, RESIDENT_COPIES, Prediction, predict, uses_bf16
from cosa_dist.benchmark.report import Report, Row, Table
from cosa_dist.benchmark.step_parts import whole_step
from cosa_dist.benchmark.step_speed import PHASES, compute_format, phase_steps
from cosa_dist.benchmark.stopwatch import in_turn, synchroniser
from cosa_dist.benchmark.workload import class_count, prepare
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig


def measured_mfu(config: RunConfig, device: torch.device, rate: float, rounds: int) -> dict[str, float]:
    """Share of the matrix rate that one worker reaches in each phase of the run, its batch as configured."""
    work = prepare(config, device, loader=False)
    flops = step_flops(config, class_count(config), config.training.global_batch_size)
    operations = {PHASES[0]: flops.warmup, PHASES[1]: flops.co_training}
    shares = {}
    for phase, step in phase_steps(config).items():

        def take(step: int = step) -> None:
            work.state.step = step
            whole_step(work, device)

        seconds = statistics.median(in_turn({"step": take}, rounds, synchroniser(device))["step"])
        shares[phase] = operations[phase] / seconds / rate
    return shares


def _all_reduce_rank(rank: int, workers: int, size: int, file: str) -> float:
    """Seconds of one all-reduce of `size` bytes in a gloo group; runs in a process of its own."""
    torch.set_num_threads(1)
    store = dist.FileStore(file, workers)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=120)
    )
    try:
        tensor = torch.ones(size // 4)
        seconds = []
        for _ in range(5):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - started)
            tensor.fill_(1.0)
        return statistics.median(seconds[1:])
    finally:
        dist.destroy_process_group()


def loopback_bandwidth(workers: int, size: int = 20_000_000) -> float:
    """Bytes per second of each link of a ring of processes on this machine (gloo), as a plan counts them."""
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        file = str(Path(folder) / "store")
        jobs = [pool.submit(_all_reduce_rank, rank, workers, size, file) for rank in range(workers)]
        seconds = max(job.result() for job in jobs)
    return 2 * (workers - 1) / workers * size / seconds


def this_machine(config: RunConfig, device: torch.device, workers: int, rounds: int) -> Machine:
    """Describe this machine by measuring it: rate, MFU in each phase, and on the CPU the loopback ring.

    Args:
        config: the run.
        device: where a worker computes.
        workers: most workers that the plan is for; on the CPU each with this process's threads, and the
            rate is that which each has while all of them work.
        rounds: steps of each phase that count.
    """
    dtype = compute_format(config, device)
    rate = matrix_rate(device, dtype)
    shares = measured_mfu(config, device, rate, rounds)
    # Other work may have slowed the product down more than the networks: the peak is no less than they reach.
    excess = max(1.0, *shares.values())
    rate, shares = rate * excess, {phase: share / excess for phase, share in shares.items()}
    values = {
        "name": THIS,
        "gpus_per_node": workers,
        "fp32_tflops": rate / 1e12,
        "bf16_tflops": rate / 1e12 if dtype == torch.bfloat16 else 0.0,
        "mfu": shares.get(PHASES[1], 0.0) or shares[PHASES[0]],
        "warmup_mfu": shares.get(PHASES[0], 0.0),
        "latency_us": 50.0,
    }
    if device.type == "cpu" and workers > 1:
        values["bandwidth_gbs"] = loopback_bandwidth(workers) / 1e9
    return Machine.model_validate(values)


def slowdown(workers: int, threads: int) -> float:
    """Rate of each of several CPU processes over the rate of one alone; at most 1."""
    if workers == 1:
        return 1.0
    return min(1.0, shared_rate(workers, threads) / shared_rate(1, threads))


def worker_counts(machine: Machine) -> list[int]:
    """One worker, each number of GPUs up to a node's, doubling, then whole nodes."""
    inside = [2**power for power in range(machine.gpus_per_node.bit_length())]
    whole = [node * machine.gpus_per_node for node in range(1, machine.nodes + 1)]
    return sorted({count for count in [*inside, *whole] if count <= machine.nodes * machine.gpus_per_node})


def plan(config: RunConfig, machine: Machine, shared: dict[int, float] | None = None) -> Report:
    """Predict the run for every number of workers of a machine.

    Args:
        config: the run.
        machine: what to assume.
        shared: by number of workers, the share of its rate that each keeps while all work (1 if left out).
    """
    image = footprint(config, class_count(config), uses_bf16(config, machine))
    rows: list[Row] = []
    for workers in worker_counts(machine):
        share = (shared or {}).get(workers, 1.0)
        slowed = machine.model_copy(
            update={
                "fp32_tflops": machine.fp32_tflops * share,
                "bf16_tflops": machine.bf16_tflops * share,
            }
        )
        try:
            rows.append(_row(predict(config, image, slowed, workers), machine))
        except ConfigError as error:
            rows.append({**dict.fromkeys(_row(_NOTHING, machine)), "workers": workers, "remark": str(error)})
    facts: dict[str, object] = {
        "recipe": config.recipe,
        "machine": machine.name,
        "backbone": config.model.backbone,
    }
    facts |= {"global batch": config.training.global_batch_size, "steps": config.training.steps}
    table = Table(f"plan for 1 to {machine.nodes} node(s) of {machine.gpus_per_node}", rows)
    return Report("plan", facts, [table], assumptions(config, image, machine, shared))


_NOTHING = Prediction(1, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _row(prediction: Prediction, machine: Machine) -> Row:
    full = bool(machine.memory_gb) and prediction.memory_gb > machine.memory_gb
    return {
        "nodes": -(-prediction.workers // machine.gpus_per_node),
        "workers": prediction.workers,
        "images/worker": prediction.images_per_worker,
        "images/s": prediction.images_per_second,
        "warm-up step s": prediction.warmup_seconds,
        "co-training step s": prediction.step_seconds,
        "exchange s": prediction.exchange_seconds,
        "wall hours": prediction.hours,
        "GPU hours": prediction.gpu_hours,
        "GB/worker": prediction.memory_gb,
        "remark": f"more than {machine.memory_gb:g} GB" if full else "",
    }


def assumptions(
    config: RunConfig, image: Footprint, machine: Machine, shared: dict[int, float] | None = None
) -> list[str]:
    """What the plan takes for granted, one line each, with the numbers."""
    bf16 = uses_bf16(config, machine)
    size, flops = image.size, image.flops
    peak = machine.bf16_tflops if bf16 else machine.fp32_tflops
    warmup = machine.warmup_mfu or machine.mfu
    lines = [
        f"{flops.co_training / 1e9:,.0f} GFLOP per image in co-training "
        f"({flops.assignment_pass / 1e9:,.0f} of them in the assignment pass), "
        f"{flops.warmup / 1e9:,.0f} in the loss warm-up; {image.classes} classes",
        f"{'bf16' if bf16 else 'fp32'} peak of a worker {peak:.4g} TFLOP/s, of which the networks reach "
        f"{100 * machine.mfu:.1f} % in co-training and {100 * warmup:.1f} % in the warm-up, "
        "at any batch size",
        f"gradients: {size.trained_parameters * BYTES / 1e6:,.0f} MB of float32 on a ring, "
        f"{machine.bandwidth_gbs:.3g} GB/s inside a node, {machine.node_bandwidth_gbs:.3g} GB/s between "
        f"nodes, {machine.latency_us:g} us a message, {100 * machine.overlap:.0f} % of it hidden",
        f"memory: {RESIDENT_COPIES} copies of {size.parameters / 1e6:.1f} M parameters, "
        f"{size.activations / 1e6:,.0f} MB of activations per image, {FULL_MAPS} maps of the crop per class",
        "loading, evaluation, checkpoints and the start are not counted",
    ]
    slow = {count: share for count, share in (shared or {}).items() if share < 1}
    if slow:
        words = ", ".join(f"{count} workers: {100 * share:.0f} %" for count, share in slow.items())
        lines.append(f"each worker's rate while all work, measured: {words} of one alone")
    return lines
