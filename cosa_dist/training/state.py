"""Everything that a resume needs, in one place.

The random numbers of the views are keyed by seed, epoch and position, and those of the step by seed, step
and rank; so the state holds no generator: the step number determines them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cosa_dist.assignment.threshold import ThresholdSource
from cosa_dist.assignment.threshold_search import threshold_source
from cosa_dist.config.schema import RunConfig
from cosa_dist.model.assignment_network import copy_network
from cosa_dist.model.backbone import check_input_size, check_tag
from cosa_dist.model.network import CosaNetwork
from cosa_dist.model.weights import backbone_tensors, network_tensors, parse_weight_source
from cosa_dist.training.networks import TrainedNetwork, build_trained_network, network_names
from cosa_dist.training.optimizer import build_optimizer


@dataclass
class TrainState:
    """Both networks, the optimiser, the thresholds, and how far the run has come."""

    config: RunConfig
    online: TrainedNetwork
    """the network itself, never a wrapper of it"""
    assignment: nn.Module
    """its moving average"""
    optimizer: torch.optim.Optimizer
    step: int = 0
    """finished optimiser steps; the next sample's position is `step * global_batch_size`"""
    best_score: float = float("-inf")
    """highest unfiltered mIoU (%) of either network so far"""
    seconds: float = 0.0
    """training time so far, over all resumes"""
    thresholds: ThresholdSource = field(init=False)
    """confidence thresholds of both CAMs, on the networks' device"""

    def __post_init__(self) -> None:
        """Start the thresholds as the configuration says."""
        device = next(self.online.parameters()).device
        self.thresholds = threshold_source(self.config.assignment.threshold, device)

    def position(self) -> dict[str, Any]:
        """The plain numbers of the state, for the checkpoint's JSON part."""
        return {"step": self.step, "best_score": self.best_score, "seconds": self.seconds}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Both networks by the names that reports and metrics use."""
        return dict(zip(network_names(self.config), (self.online, self.assignment), strict=True))

    @property
    def co_training(self) -> bool:
        """Whether the next step uses all losses (not only the classification's)."""
        return self.config.kind == "cosa" and self.step >= self.config.losses.warmup_steps


def build_state(config: RunConfig, classes: int, device: torch.device) -> TrainState:
    """Create the fresh state of a run on `device`; equal on every rank.

    Raises:
        ValueError: a backbone, weights or input sizes that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    online = build_trained_network(config, classes).to(device)
    check_sizes(config, online)
    return TrainState(
        config=config,
        online=online,
        assignment=copy_network(online),
        optimizer=build_optimizer(online, config.optimizer, spare_norms=config.kind == "segmenter"),
    )


def check_network(config: RunConfig, classes: int) -> None:
    """Refuse what `build_state` would refuse, in a second or two: nothing is downloaded.

    Raises:
        ValueError: a backbone, weights or input sizes that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    source = parse_weight_source(config.model.weights)
    bare = config.model.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        network = build_trained_network(config.model_copy(update={"model": bare}), classes)
    check_sizes(config, network)
    if source.tag:
        check_tag(config.model.backbone, source.tag)
    elif source.file is not None and isinstance(network, CosaNetwork):
        network_tensors(network, source.file, config.model.aux_layer)
    elif source.file is not None:
        backbone_tensors(network.backbone, source.file)


def check_sizes(config: RunConfig, online: TrainedNetwork) -> None:
    """Refuse a crop or an evaluation size that the backbone cannot see at all scales.

    Raises:
        ValueError: naming the option and the nearest sizes that fit.
    """
    crop, size = config.data.crop_size, config.evaluation.size
    seen = (1.0,) if config.kind == "segmenter" else config.assignment.scales
    check_input_size(online.backbone, "data.crop_size", crop, seen, training=True)
    check_input_size(online.backbone, "evaluation.size", size, config.evaluation.scales, training=False)
