"""From operations to hours: what a run would take on a described machine, with every assumption.

A step takes its operations divided by the rate that the networks reach, or the time in which the host
launches its kernels if that is longer, plus the exchange of gradients on a ring: each of n workers sends
2 (n - 1) / n of the gradients' bytes over the slowest link, in buckets of 25 MB with 2 (n - 1) messages each.
Loading, evaluation and checkpoints are not counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError

from cosa_dist.benchmark.measure import Report, Row, Table, matrix_rate
from cosa_dist.benchmark.workload import (
    CO_TRAINING,
    WARM_UP,
    class_count,
    compute_format,
    phase_steps,
    prepare,
    timed_steps,
)
from cosa_dist.config.errors import ConfigError, describe, nearest
from cosa_dist.config.loading import read_yaml
from cosa_dist.config.method import Fraction, NonNegative, Positive, Section
from cosa_dist.config.paths import place
from cosa_dist.config.schema import Count, RunConfig
from cosa_dist.data.reading.order import micro_batch
from cosa_dist.training.flops import BYTES, PEAK_TFLOPS, Footprint, footprint, known_gpu

BUCKET = 25e6
"""bytes of one bucket of DistributedDataParallel"""
RESIDENT_COPIES = 5
"""float32 copies of the parameters: online, gradients, two moments of AdamW, assignment network"""
FULL_MAPS = 6
"""planes of the crop's size that are alive at once for each class: logits, probabilities, their gradients"""
CONTEXTS_GB = 3.0
"""memory of a GPU that tensors do not get: CUDA's context, workspaces of cuBLAS and cuDNN, buffers of NCCL"""
_BESIDE_THE_PEAKS: dict[str, dict[str, float]] = {
    "rtx3090": {"memory_gb": 24, "bandwidth_gbs": 10},
    "a100": {"memory_gb": 80, "bandwidth_gbs": 250},
    "h100": {"memory_gb": 80, "bandwidth_gbs": 400},
    "h200": {"memory_gb": 141, "bandwidth_gbs": 400},
}
KNOWN_MACHINES: dict[str, dict[str, Any]] = {
    name: {f"{form}_tflops": peak for form, peak in PEAK_TFLOPS[name].items()} | facts
    for name, facts in _BESIDE_THE_PEAKS.items()
}
"""data sheets' dense peaks and memory; bandwidths are round numbers of PCIe 4 and of NVLink"""
THIS = "this"


class Machine(Section):
    """One kind of node, a number of them, and what connects them."""

    name: str = "unnamed"
    """for the table"""
    nodes: Count = 1
    """most nodes"""
    gpus_per_node: Count = 1
    """GPUs of a node (on a machine without any: worker processes)"""
    fp32_tflops: Positive = 20.0
    """peak of one GPU's float32 matrix products, 10^12 operations per second (data sheet or measured)"""
    tf32_tflops: NonNegative = 0.0
    """the same where training.matmul_precision is high (0: the GPU has no TF32)"""
    bf16_tflops: NonNegative = 0.0
    """peak in bf16 (0: the GPU has none)"""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.35
    """share of the peak that the networks reach"""
    warmup_mfu: Annotated[float, Field(ge=0, le=1)] = 0.0
    """the same in the loss warm-up (0: as in co-training)"""
    host_ms: NonNegative = 45.0
    """milliseconds in which the host launches a micro-batch's kernels in co-training; no step is faster"""
    warmup_host_ms: NonNegative = 20.0
    """the same in the loss warm-up"""
    memory_gb: NonNegative = 0.0
    """memory of one GPU in GB (0: not checked)"""
    bandwidth_gbs: Positive = 20.0
    """GB/s that one GPU sends to another of its node"""
    node_bandwidth_gbs: Positive = 10.0
    """GB/s that a node sends to another, shared by its GPUs' one ring"""
    latency_us: NonNegative = 20.0
    """microseconds of one message"""
    overlap: Fraction = 0.0
    """share of the exchange of gradients that hides behind the backward pass"""

    def peak(self, config: RunConfig) -> tuple[str, float]:
        """Number format that the run computes in here, and its operations per second.

        Raises ConfigError where bf16 is asked for and the machine has none.
        """
        wanted = config.training.precision
        if wanted == "bf16" and not self.bf16_tflops:
            raise ConfigError(f"training.precision bf16: {self.name} has bf16_tflops 0; give it, or use fp32")
        if wanted == "bf16" or (wanted == "auto" and self.bf16_tflops):
            return "bf16", 1e12 * self.bf16_tflops
        if config.training.matmul_precision != "highest" and self.tf32_tflops:
            return "tf32", 1e12 * self.tf32_tflops
        return "fp32", 1e12 * self.fp32_tflops


def machine_of_device(name: str) -> Machine | None:
    """The known machine that a device's full name speaks of, such as "NVIDIA H200"; None of another."""
    known = known_gpu(name)
    return Machine(name=known, **KNOWN_MACHINES[known]) if known else None


def read_machine(name_or_file: str, changes: dict[str, Any]) -> Machine:
    """A known GPU by name, or a YAML file, with the fields of `changes` instead of its own.

    Raises ConfigError for an unknown name, a missing file or a wrong field.
    """
    if name_or_file in KNOWN_MACHINES:
        values = {"name": name_or_file, **KNOWN_MACHINES[name_or_file]}
    elif name_or_file.endswith((".yaml", ".yml")):
        values = {"name": Path(name_or_file).stem, **read_yaml(place(name_or_file))}
    else:
        names = [*KNOWN_MACHINES, THIS]
        raise ConfigError(
            f"--machine {name_or_file}: no such machine{nearest(name_or_file, names)}; give one of "
            f"{', '.join(names)} or a YAML file"
        )
    try:
        return Machine.model_validate({**values, **changes})
    except ValidationError as error:
        lines = describe(error, Machine.model_fields)
        raise ConfigError("\n".join(f"machine {name_or_file}: {line}" for line in lines)) from None


def this_machine(config: RunConfig, device: torch.device, workers: int, rounds: int) -> Machine:
    """Describe this machine by measuring the rate of a matrix product, and MFU and host time of each phase.

    `workers` is the most that the plan is for; on the CPU each has this process's threads, and is assumed to
    be as fast as one that works alone.
    """
    dtype = compute_format(config, device)
    rate = matrix_rate(device, dtype)
    shares, host = measured_phases(config, device, rate, rounds)
    # Other work may have slowed the product down more than the networks: the peak is no less than they reach.
    excess = max(1.0, *shares.values())
    return Machine(
        name=THIS,
        gpus_per_node=workers,
        fp32_tflops=rate * excess / 1e12,
        tf32_tflops=rate * excess / 1e12,
        bf16_tflops=rate * excess / 1e12 if dtype == torch.bfloat16 else 0.0,
        mfu=shares.get(CO_TRAINING, shares.get(WARM_UP, 0.0)) / excess,
        warmup_mfu=shares.get(WARM_UP, 0.0) / excess,
        host_ms=host.get(CO_TRAINING, 0.0),
        warmup_host_ms=host.get(WARM_UP, 0.0),
    )


def measured_phases(
    config: RunConfig, device: torch.device, rate: float, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Fraction of the matrix rate that one worker reaches in each phase, and milliseconds of the host.

    The batch is that of the run, the host's time that of one micro-batch (0 on the CPU, which is the device).
    """
    work, cost = prepare(config, device, loader=False), footprint(config, class_count(config))
    operations = {WARM_UP: cost.warmup, CO_TRAINING: cost.co_training}
    shares, host = {}, {}
    for phase, step in phase_steps(config).items():
        times = timed_steps(work, device, step, rounds)
        shares[phase] = config.training.global_batch_size * operations[phase] / times.seconds / rate
        host[phase] = times.host_ms / work.parts
    return shares, host


def exchange_seconds(machine: Machine, size: float, workers: int) -> float:
    """Seconds of an all-reduce of `size` bytes on a ring that do not hide behind the backward pass."""
    if workers == 1:
        return 0.0
    inside = workers <= machine.gpus_per_node
    bandwidth = machine.bandwidth_gbs if inside else min(machine.bandwidth_gbs, machine.node_bandwidth_gbs)
    hops = 2 * (workers - 1)
    sending = hops / workers * size / (1e9 * bandwidth)
    return (sending + hops * 1e-6 * machine.latency_us * math.ceil(size / BUCKET)) * (1 - machine.overlap)


def memory_gb(config: RunConfig, cost: Footprint, images: int, alone: bool = False) -> float:
    """Memory of one worker: copies of the parameters, activations kept for the backward pass, maps.

    A worker that is `alone` with a whole batch gets its gradients as the activations go: both are never there
    at once. With activation checkpointing it has hardly any (`stepping_in_backward`), and a block that is
    computed again may need more than the maps. A frozen encoder is there once.
    """
    shared = (cost.parameters - cost.trained_parameters) * BYTES if config.model.freeze == "encoder" else 0
    copy = cost.parameters * BYTES - shared
    maps = FULL_MAPS * images * (cost.classes + 1) * config.data.crop_size**2 * BYTES
    kept = shared + cost.kept_once + images * cost.activations + max(maps, images * cost.recomputed)
    if not alone:
        return (RESIDENT_COPIES * copy + kept) / 1e9
    gradients = 0 if config.training.activation_checkpointing else copy
    return ((RESIDENT_COPIES - 1) * copy + max(kept, gradients)) / 1e9


def predict(config: RunConfig, cost: Footprint, machine: Machine, workers: int) -> Row:
    """What is expected of the run with its global batch shared by some workers: a row of the plan.

    Raises ConfigError for a batch that they cannot share, or a precision that the machine does not have.
    """
    batch, steps = config.training.global_batch_size, config.training.steps
    micro = micro_batch(batch, workers, config.training.micro_batch_size)
    images, (_, peak) = batch // workers, machine.peak(config)
    parts = images // micro
    exchange = exchange_seconds(machine, cost.trained_parameters * BYTES, workers)
    warmup_compute = images * cost.warmup / (peak * (machine.warmup_mfu or machine.mfu))
    compute = images * cost.co_training / (peak * machine.mfu)
    warmup = max(warmup_compute, parts * machine.warmup_host_ms / 1000) + exchange
    step = max(compute, parts * machine.host_ms / 1000) + exchange
    control = config.kind == "control"
    first = steps if control else config.losses.warmup_steps
    hours = (first * warmup + (steps - first) * step) / 3600
    memory = memory_gb(config, cost, micro, alone=workers == parts == 1)
    remarks = []
    if machine.memory_gb and memory > machine.memory_gb - CONTEXTS_GB:
        remarks.append(f"more than {machine.memory_gb:g} GB less {CONTEXTS_GB:g} of contexts")
    if (warmup - exchange > warmup_compute) if control else (step - exchange > compute):
        remarks.append("bound by the host")
    return {
        "nodes": -(-workers // machine.gpus_per_node),
        "workers": workers,
        "images/worker": images,
        "images/s": batch / (warmup if control else step),
        "warm-up step s": warmup,
        "co-training step s": step,
        "exchange s": exchange,
        "wall hours": hours,
        "GPU hours": hours * workers,
        "GB/worker": memory,
        "remark": ", ".join(remarks),
    }


def worker_counts(machine: Machine) -> list[int]:
    """One worker, doubling up to a node's GPUs, then whole nodes."""
    inside = {2**power for power in range(machine.gpus_per_node.bit_length())}
    return sorted(inside | {node * machine.gpus_per_node for node in range(1, machine.nodes + 1)})


def plan(config: RunConfig, machine: Machine) -> Report:
    """Predict the run for every number of workers of a machine."""
    cost = footprint(config, class_count(config), machine.peak(config)[0] == "bf16")
    rows: list[Row] = []
    empty = dict.fromkeys(predict(config, cost, machine, 1))
    for workers in worker_counts(machine):
        try:
            rows.append(predict(config, cost, machine, workers))
        except ConfigError as error:
            rows.append({**empty, "workers": workers, "remark": str(error)})
    facts: dict[str, object] = {
        "recipe": config.recipe,
        "machine": machine.name,
        "backbone": config.model.backbone,
        "global batch": config.training.global_batch_size,
        "steps": config.training.steps,
    }
    table = Table(f"plan for 1 to {machine.nodes} node(s) of {machine.gpus_per_node}", rows)
    return Report("plan", facts, [table], assumptions(config, cost, machine))


def assumptions(config: RunConfig, cost: Footprint, machine: Machine) -> list[str]:
    """What the plan takes for granted, one line each, with the numbers."""
    name, peak = machine.peak(config)
    warmup = machine.warmup_mfu or machine.mfu
    return [
        f"{cost.co_training / 1e9:,.0f} GFLOP per image in co-training "
        f"({cost.assignment_pass / 1e9:,.0f} of them in the assignment pass), "
        f"{cost.warmup / 1e9:,.0f} in the loss warm-up; {cost.classes} classes",
        f"{name} peak of a worker {peak / 1e12:.4g} TFLOP/s, of which the networks reach "
        f"{100 * machine.mfu:.1f} % in co-training and {100 * warmup:.1f} % in the warm-up",
        f"the host launches a micro-batch in {machine.host_ms:.3g} ms ({machine.warmup_host_ms:.3g} ms in "
        "the warm-up): no step is shorter",
        f"gradients: {cost.trained_parameters * BYTES / 1e6:,.0f} MB of float32 on a ring, "
        f"{machine.bandwidth_gbs:.3g} GB/s inside a node, {machine.node_bandwidth_gbs:.3g} GB/s between "
        f"nodes, {machine.latency_us:g} us a message, {100 * machine.overlap:.0f} % of it hidden",
        f"memory: {RESIDENT_COPIES} copies of {cost.parameters / 1e6:.1f} M parameters, "
        f"{cost.activations / 1e6:,.0f} MB of activations per image, {FULL_MAPS} maps of the crop per class"
        + (", blocks computed again" if config.training.activation_checkpointing else ""),
        "loading, evaluation, checkpoints and the start are not counted",
    ]
