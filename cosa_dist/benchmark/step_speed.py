"""What a training step costs: seconds, images per second, parts, memory, operations and their rate."""

from __future__ import annotations

import resource
import statistics
import sys

import torch

from cosa_dist.benchmark.framework import framework_table, line_seconds
from cosa_dist.benchmark.matrix_rate import matrix_rate
from cosa_dist.benchmark.model_flops import StepFlops, step_flops
from cosa_dist.benchmark.report import Report, Row, Table, machine_facts
from cosa_dist.benchmark.step_parts import NETWORK_PARTS, measured_step, whole_step
from cosa_dist.benchmark.stopwatch import Stopwatch, in_turn, medians, synchroniser
from cosa_dist.benchmark.workload import Workload, class_count
from cosa_dist.config.schema import RunConfig
from cosa_dist.training.precision import resolve_precision

PHASES = ("loss warm-up", "co-training")


def phase_steps(config: RunConfig) -> dict[str, int]:
    """Step number at which each phase of the run is met; a phase that the run does not have is left out."""
    first = config.losses.warmup_steps
    steps = {PHASES[0]: 0} if first or config.kind == "control" else {}
    return steps if config.kind == "control" else {**steps, PHASES[1]: first}


def peak_memory(device: torch.device) -> float:
    """Highest memory in GB: of the device's tensors, or on the CPU of this process since its start."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def compute_format(config: RunConfig, device: torch.device) -> torch.dtype:
    """Number format of the run's matrix products."""
    chosen = resolve_precision(config.training.precision, device.type)
    return torch.bfloat16 if chosen == "bf16" else torch.float32


def measure_step(work: Workload, device: torch.device, rounds: int) -> Report:
    """Measure a whole step of each phase, then the same with its parts.

    Args:
        work: networks and batches.
        device: where they are.
        rounds: steps of each phase that count, after one that does not; the median is given.
    """
    config = work.config
    flops = step_flops(config, class_count(config), config.training.global_batch_size)
    rate = matrix_rate(device, compute_format(config, device))
    report = Report("step", _facts(work, device, rate))
    wholes: list[Row] = []
    parts: dict[str, dict[str, float]] = {}
    for phase, step in phase_steps(config).items():
        seconds = _whole(work, device, rounds, step)
        wholes.append(_whole_row(phase, seconds, config, flops, rate, peak_memory(device)))
        parts[phase] = _parts(work, device, rounds, step)
    report.tables.append(Table("whole step (nothing wrapped)", wholes))
    report.tables.append(Table("parts of the step", part_rows(parts)))
    line = line_seconds(mlflow=config.tracking.enabled)
    report.tables.append(framework_table(parts, config, line))
    report.notes.append(
        "parts exclude the parts inside them; 'beside the networks' is all but assignment pass, online "
        "forward and the network's backward"
    )
    return report


def _facts(work: Workload, device: torch.device, rate: float) -> dict[str, object]:
    config = work.config
    return {
        **machine_facts(device),
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "crop": config.data.crop_size,
        "batch": config.training.global_batch_size,
        "precision": str(compute_format(config, device)).removeprefix("torch."),
        "matrix_gflops": round(rate / 1e9, 1),
        "batches": work.source,
    }


def _whole(work: Workload, device: torch.device, rounds: int, step: int) -> float:
    def take() -> None:
        work.state.step = step
        whole_step(work, device)

    return statistics.median(in_turn({"step": take}, rounds, synchroniser(device))["step"])


def _parts(work: Workload, device: torch.device, rounds: int, step: int) -> dict[str, float]:
    watch = Stopwatch(synchroniser(device))
    found = []
    for _ in range(rounds):
        work.state.step = step
        found.append(measured_step(work, device, watch))
    return medians(found)


def _whole_row(
    phase: str, seconds: float, config: RunConfig, flops: StepFlops, rate: float, memory: float
) -> Row:
    operations = flops.co_training if phase == PHASES[1] else flops.warmup
    return {
        "phase": phase,
        "seconds": seconds,
        "images/s": config.training.global_batch_size / seconds,
        "model GFLOP": operations / 1e9,
        "GFLOP/s": operations / seconds / 1e9,
        "MFU %": 100 * operations / seconds / rate,
        "peak GB so far": memory,
    }


def part_rows(parts: dict[str, dict[str, float]]) -> list[Row]:
    """One row per part with seconds and share for each phase, and the sums.

    Args:
        parts: seconds by part, by phase.
    """
    longest_first = sorted(parts.values(), key=len, reverse=True)
    names = dict.fromkeys(name for found in longest_first for name in found)
    rows: list[Row] = []
    for name in names:
        row: Row = {"part": name}
        for phase, found in parts.items():
            row[f"{phase} s"] = found.get(name, 0.0)
            row[f"{phase} %"] = 100 * found.get(name, 0.0) / sum(found.values())
        rows.append(row)
    for label, chosen in (("sum", names), ("beside the networks", names.keys() - set(NETWORK_PARTS))):
        row = {"part": label}
        for phase, found in parts.items():
            seconds = sum(found.get(name, 0.0) for name in chosen)
            row[f"{phase} s"], row[f"{phase} %"] = seconds, 100 * seconds / sum(found.values())
        rows.append(row)
    return rows
