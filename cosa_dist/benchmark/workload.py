"""What a measurement works on: a run's networks and batches as they would be in training.

Without shards the batches are generated in memory: smooth coloured images with one or two tags each, every
fourth with padding at the border. The time of a step depends on sizes and on the number of present
classes, not on what the pictures show or on the weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from torch import nn

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import KNOWN
from cosa_dist.data.reading.order import micro_batch
from cosa_dist.data.reading.samples import Batch
from cosa_dist.distributed.plan import loader_processes
from cosa_dist.losses.objective import LossTerms
from cosa_dist.stopwatch import synchroniser
from cosa_dist.tracking.provenance import usable_cpus
from cosa_dist.training.state import (
    TrainState,
    build_state,
    compile_networks,
    make_accelerator,
    resolve_precision,
    wrap_online,
)
from cosa_dist.training.step import training_step

WARM_UP, CO_TRAINING = "loss warm-up", "co-training"


@dataclass
class Workload:
    """A run that is ready to take steps."""

    config: RunConfig
    state: TrainState
    network: nn.Module
    """the online network as the accelerator prepared it"""
    accelerator: Accelerator
    steps: Iterator[Sequence[Batch]]
    """endless; per optimiser step this rank's micro-batches, on the CPU as the loader hands them out"""
    source: str
    """where the batches come from"""
    parts: int = 1
    """micro-batches of a step"""

    def take(self, step: int, device: torch.device) -> LossTerms:
        """Take the optimiser step of this number, as training does; returns its loss terms on the device."""
        self.state.step = step
        batches = [batch.to(device) for batch in next(self.steps)]
        return training_step(self.state, self.network, batches, self.accelerator)


def has_shards(config: RunConfig) -> bool:
    """Whether the run's training split is on this machine."""
    return (Path(config.data.shards) / config.data.train_split).is_dir()


def class_count(config: RunConfig) -> int:
    """Foreground classes of the run's data set: of its shards, or of the known set it is named after."""
    if has_shards(config):
        from cosa_dist.data.reading.loader import open_reading

        return len(open_reading(config.data, config.data.train_split).class_names)
    words = f"{config.data.label} {config.data.shards}".lower()
    return next((info.num_foreground for name, info in KNOWN.items() if name in words), 20)


def generated_batch(images: int, size: int, classes: int, seed: int = 0) -> Batch:
    """A training batch of B `images` of side `size` of random numbers, 1 and 2 of C `classes` in turn."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 7, 7, generator=generator) * 255
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    grain = torch.rand(images, 3, size, size, generator=generator) * 30 - 15
    weak = (smooth + grain).clamp(0, 255).byte()
    labels = torch.zeros(images, classes)
    boxes = torch.tensor([[0, size, 0, size]] * images)
    for index in range(images):
        tags = torch.randperm(classes, generator=generator)[: 1 + index % 2]
        labels[index, tags] = 1.0
        if index % 4 == 3:
            boxes[index] = torch.tensor([size // 8, size, 0, size - size // 8])
    return Batch(
        ids=[f"generated {index}" for index in range(images)],
        positions=torch.arange(images),
        weak=weak,
        strong=(weak.float() * 1.3).clamp(0, 255).byte(),
        labels=labels,
        boxes=boxes,
    )


def training_steps(config: RunConfig, micro: int) -> Iterator[Sequence[Batch]]:
    """The run's own steps from its shards, read as in training."""
    from cosa_dist.data.reading.loader import TrainingLoader, open_reading

    loader = TrainingLoader(
        open_reading(config.data, config.data.train_split),
        crop_size=config.data.crop_size,
        scale_range=config.data.scale_range,
        seed=config.seed,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=micro,
        stop_step=10**6,
        num_workers=loader_processes(config.data, usable_cpus(), torch.cuda.is_available()),
        pin_memory=torch.cuda.is_available(),
        shuffle_window=config.data.shuffle_window,
    )
    return iter(loader)


def prepare(config: RunConfig, device: torch.device, world_size: int = 1, loader: bool = True) -> Workload:
    """Networks, optimiser and batches of one rank of `world_size` (more than one needs a process group).

    With `loader` the run's shards are read if they are there; else batches are generated. Raises ConfigError
    for a batch that the ranks cannot share, ValueError for a backbone or sizes that do not fit.
    """
    batch, size = config.training.global_batch_size, config.data.crop_size
    micro = micro_batch(batch, world_size, config.training.micro_batch_size)
    classes = class_count(config)
    accelerator = make_accelerator(config.training.precision, world_size, device.type == "cpu")
    state = build_state(config, classes, accelerator.device)
    if config.training.compile:
        compile_networks(state)
    network = wrap_online(state, accelerator)
    network.train()
    parts = batch // world_size // micro
    if loader and world_size == 1 and has_shards(config):
        steps, source = training_steps(config, micro), config.data.shards
    else:
        generated = [
            [generated_batch(micro, size, classes, 2 * part + turn) for part in range(parts)]
            for turn in (0, 1)
        ]
        steps, source = cycle(generated), "generated in memory"
    return Workload(config, state, network, accelerator, steps, source, parts)


def phase_steps(config: RunConfig) -> dict[str, int]:
    """The number of a step in each phase of the run; a phase that the run does not have is left out."""
    first, control = config.losses.warmup_steps, config.kind == "control"
    return ({WARM_UP: 0} if first or control else {}) | ({} if control else {CO_TRAINING: first})


def compute_format(config: RunConfig, device: torch.device) -> torch.dtype:
    """Number format of the run's matrix products."""
    chosen = resolve_precision(config.training.precision, device.type)
    return torch.bfloat16 if chosen == "bf16" else torch.float32


@dataclass(frozen=True)
class StepTimes:
    """Some steps of one number, each timed from an idle device to an idle device."""

    rounds: list[float]
    """seconds of the steps that count"""
    host: list[float]
    """seconds of these until the host had launched everything; those of the step on the CPU"""
    terms: list[LossTerms]
    """loss terms of all steps, those that do not count as well"""
    on_cpu: bool

    @property
    def seconds(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.rounds)

    @property
    def host_ms(self) -> float:
        """Median milliseconds of the host; 0 on the CPU, where it is the device."""
        return 0.0 if self.on_cpu else 1000 * statistics.median(self.host)


def timed_steps(work: Workload, device: torch.device, step: int, rounds: int, warm_up: int = 1) -> StepTimes:
    """Take `warm_up` steps of this number that do not count and `rounds` that do."""
    synchronise = synchroniser(device)
    found = StepTimes([], [], [], device.type == "cpu")
    for turn in range(warm_up + rounds):
        synchronise()
        started = time.perf_counter()
        found.terms.append(work.take(step, device))
        launched = time.perf_counter()
        synchronise()
        if turn >= warm_up:
            found.rounds.append(time.perf_counter() - started)
            found.host.append(launched - started)
    return found
