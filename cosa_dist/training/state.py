"""Everything that a resume needs, in one place.

The random numbers of the views are keyed by seed, epoch and position, and those of the step by seed, step
and rank; so the state holds no generator: the step number determines them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cosa_dist.config.schema import RunConfig
from cosa_dist.model.assignment_network import copy_network
from cosa_dist.model.network import CosaNetwork, build_network
from cosa_dist.training.optimizer import build_optimizer


@dataclass
class TrainState:
    """Both networks, the optimiser, and how far the run has come."""

    config: RunConfig
    online: CosaNetwork
    """the network itself, never a wrapper of it"""
    assignment: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """finished optimiser steps; the next sample's position is `step * global_batch_size`"""
    best_score: float = float("-inf")
    """highest unfiltered mIoU (%) of either network so far"""
    seconds: float = 0.0
    """training time so far, over all resumes"""

    def position(self) -> dict[str, Any]:
        """The plain numbers of the state, for the checkpoint's JSON part."""
        return {"step": self.step, "best_score": self.best_score, "seconds": self.seconds}

    @property
    def co_training(self) -> bool:
        """Whether the next step uses all losses (not only the classification's)."""
        return self.config.kind == "cosa" and self.step >= self.config.losses.warmup_steps


def build_state(config: RunConfig, classes: int, device: torch.device) -> TrainState:
    """Create the fresh state of a run on `device`; equal on every rank.

    Raises:
        ValueError: a backbone or weights that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    online = build_network(config.model, classes, config.seed).to(device)
    return TrainState(
        config=config,
        online=online,
        assignment=copy_network(online),
        optimizer=build_optimizer(online, config.optimizer),
    )
