"""What a measurement works on: a run's networks and batches as they would be in training.

Without shards the batches are generated in memory: smooth coloured images with one or two tags each, every
fourth of them with padding at the border. How long a step takes depends on sizes and on the number of
present classes, not on what the pictures show or on the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from torch import Tensor, nn

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import KNOWN
from cosa_dist.data.reading.loader import Batch, TrainingLoader
from cosa_dist.data.reading.open import open_reading
from cosa_dist.distributed.plan import micro_batch
from cosa_dist.training.precision import make_accelerator
from cosa_dist.training.state import TrainState, build_state


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
    """where the batches come from, in words"""


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_shards(config: RunConfig) -> bool:
    """Whether the run's training split is on this machine."""
    return (Path(config.data.shards) / config.data.train_split).is_dir()


def class_count(config: RunConfig) -> int:
    """Foreground classes of the run's data set: of its shards, or of the known set it is named after."""
    if has_shards(config):
        return len(open_reading(config.data, config.data.train_split).class_names)
    words = f"{config.data.label} {config.data.shards}".lower()
    return next((info.num_foreground for name, info in KNOWN.items() if name in words), 20)


def generated_batch(images: int, size: int, classes: int, seed: int = 0) -> Batch:
    """A training batch from random numbers.

    Args:
        images: B.
        size: side S of the crops.
        classes: C; images have one and two tags in turn (one if there is only one class).
        seed: of the random numbers.
    """
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
        strong=_brighter(weak),
        labels=labels,
        boxes=boxes,
    )


def _brighter(images: Tensor) -> Tensor:
    """A strong view of uint8 images `[B, 3, S, S]`."""
    return (images.float() * 1.3).clamp(0, 255).byte()


def generated_steps(config: RunConfig, classes: int, micro: int, parts: int) -> Iterator[Sequence[Batch]]:
    """Two generated optimiser steps of `parts` micro-batches of `micro` images, over and over."""
    size = config.data.crop_size
    return cycle(
        [[generated_batch(micro, size, classes, 2 * part + turn) for part in range(parts)] for turn in (0, 1)]
    )


def training_steps(config: RunConfig, micro: int) -> Iterator[Sequence[Batch]]:
    """The run's own steps from its shards, read as in training."""
    loader = TrainingLoader(
        open_reading(config.data, config.data.train_split),
        crop_size=config.data.crop_size,
        scale_range=config.data.scale_range,
        seed=config.seed,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=micro,
        stop_step=10**6,
        num_workers=config.data.loader_workers,
        pin_memory=torch.cuda.is_available(),
        shuffle_window=config.data.shuffle_window,
    )
    return iter(loader)


def prepare(config: RunConfig, device: torch.device, world_size: int = 1, loader: bool = True) -> Workload:
    """Networks, optimiser and batches of one rank.

    Args:
        config: the run.
        device: where to compute.
        world_size: ranks that share the global batch; more than one needs a running process group.
        loader: read the run's shards if they are there; else batches are generated.

    Raises:
        ConfigError: a batch that the ranks cannot share.
        ValueError: a backbone or sizes that do not fit.
    """
    micro = micro_batch(config.training.global_batch_size, world_size, config.training.micro_batch_size)
    classes = class_count(config)
    accelerator = make_accelerator(config.training.precision, world_size, device.type == "cpu")
    state = build_state(config, classes, accelerator.device)
    if config.training.compile:
        state.online.compile()
        state.assignment.compile()
    network, state.optimizer = accelerator.prepare(state.online, state.optimizer)
    network.train()
    if loader and world_size == 1 and has_shards(config):
        return Workload(
            config, state, network, accelerator, training_steps(config, micro), config.data.shards
        )
    parts = config.training.global_batch_size // world_size // micro
    steps = generated_steps(config, classes, micro, parts)
    return Workload(config, state, network, accelerator, steps, "generated in memory")
