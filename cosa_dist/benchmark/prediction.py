"""From operations to hours: what a run would take on a described machine.

A step takes its operations divided by the rate that the networks reach, plus the exchange of gradients on a
ring: each of n workers sends 2 (n - 1) / n of the gradients' bytes over the slowest link, in buckets of 25 MB
with 2 (n - 1) messages each. Loading, evaluation and checkpoints are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cosa_dist.benchmark.machine import Machine
from cosa_dist.benchmark.model_flops import BYTES, Footprint
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.plan import micro_batch

BUCKET = 25e6
"""Bytes of one bucket of DistributedDataParallel."""
RESIDENT_COPIES = 5
"""float32 copies of the parameters: online, gradients, two moments of AdamW, assignment network."""
FULL_MAPS = 6
"""Planes of the crop's size that are alive at once for each class: logits, probabilities, their gradients."""


@dataclass(frozen=True)
class Prediction:
    """What is expected of a run with a number of workers."""

    workers: int
    images_per_worker: int
    warmup_seconds: float
    """of a step in the loss warm-up"""
    step_seconds: float
    """of a co-training step"""
    exchange_seconds: float
    """of the gradients, part of either step"""
    images_per_second: float
    """in co-training"""
    hours: float
    """of the whole run"""
    gpu_hours: float
    memory_gb: float
    """of one worker"""


def ring_seconds(size: float, workers: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce.

    Args:
        size: bytes.
        workers: n.
        bandwidth: bytes per second of the slowest link.
        latency: seconds of a message.
    """
    if workers == 1:
        return 0.0
    buckets = math.ceil(size / BUCKET)
    return 2 * (workers - 1) / workers * size / bandwidth + 2 * (workers - 1) * latency * buckets


def exchange_seconds(machine: Machine, parameters: int, workers: int) -> float:
    """Seconds of the gradients' exchange that do not hide behind the backward pass."""
    inside = workers <= machine.gpus_per_node
    bandwidth = machine.bandwidth_gbs if inside else min(machine.bandwidth_gbs, machine.node_bandwidth_gbs)
    ring = ring_seconds(parameters * BYTES, workers, bandwidth * 1e9, machine.latency_us * 1e-6)
    return ring * (1 - machine.overlap)


def uses_bf16(config: RunConfig, machine: Machine) -> bool:
    """Whether the run computes in bf16 on this machine.

    Raises:
        ConfigError: bf16 asked for on a machine without it.
    """
    wanted = config.training.precision
    if wanted == "bf16" and not machine.bf16_tflops:
        raise ConfigError(f"training.precision bf16: {machine.name} has bf16_tflops 0; give it, or use fp32")
    return wanted == "bf16" or (wanted == "auto" and machine.bf16_tflops > 0)


def memory_gb(config: RunConfig, image: Footprint, images: int) -> float:
    """Memory of one worker: copies of the parameters, activations kept for the backward pass, maps."""
    size = image.size
    maps = FULL_MAPS * images * (image.classes + 1) * config.data.crop_size**2 * BYTES
    kept = size.kept_once + images * size.activations
    return (RESIDENT_COPIES * size.parameters * BYTES + kept + maps) / 1e9


def predict(config: RunConfig, image: Footprint, machine: Machine, workers: int) -> Prediction:
    """Predict a run on some workers.

    Args:
        config: the run; its global batch is shared by the workers.
        image: what one image costs.
        machine: what to assume.
        workers: how many.

    Raises:
        ConfigError: a batch that the workers cannot share, or a precision that the machine has not.
    """
    micro = micro_batch(config.training.global_batch_size, workers, config.training.micro_batch_size)
    images = config.training.global_batch_size // workers
    flops = image.flops.of(images)
    peak = 1e12 * (machine.bf16_tflops if uses_bf16(config, machine) else machine.fp32_tflops)
    exchange = exchange_seconds(machine, image.size.trained_parameters, workers)
    warmup = flops.warmup / (peak * (machine.warmup_mfu or machine.mfu)) + exchange
    step = flops.co_training / (peak * machine.mfu) + exchange
    control = config.kind == "control"
    first = config.training.steps if control else config.losses.warmup_steps
    hours = (first * warmup + (config.training.steps - first) * step) / 3600
    return Prediction(
        workers=workers,
        images_per_worker=images,
        warmup_seconds=warmup,
        step_seconds=step,
        exchange_seconds=exchange,
        images_per_second=config.training.global_batch_size / (warmup if control else step),
        hours=hours,
        gpu_hours=hours * workers,
        memory_gb=memory_gb(config, image, micro),
    )
