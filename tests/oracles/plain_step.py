"""The whole training step in the plain way: what the released code does, part by part.

The assignment pass and all losses are computed in the loss warm-up too, and there multiplied by 0. Attention
is explicit, every class is worked on at full resolution, optimiser and moving average walk through the
parameters one by one. Recipes that ask for what the released code does not have are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.threshold import Threshold
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import Batch
from cosa_dist.data.reading.views import normalise
from cosa_dist.training.optimizer import learning_rate_factor, set_learning_rate
from cosa_dist.training.state import TrainState
from tests.oracles.plain_assignment import (
    plain_cam_pseudo_label,
    plain_multi_scale,
    plain_segmentation_pseudo_label,
)
from tests.oracles.plain_losses import plain_cam_to_seg, plain_energy, plain_seg_to_cam
from tests.oracles.plain_network import explicit_attention
from tests.oracles.plain_optimizer import one_by_one, plain_move_towards

Precision = Callable[[], AbstractContextManager[object]]
EnergyLoss = Callable[..., Tensor]
"""Takes strong views, logits, the main CAM's pseudo-label, boxes and the kernel."""


@dataclass(frozen=True)
class PlainLabels:
    """The pseudo-labels of a batch."""

    cam: Tensor
    """`[B, H, W]` of the main CAM"""
    aux_cam: Tensor
    """`[B, H, W]` of the auxiliary CAM"""
    segmentation: Tensor
    """`[B, C, h, w]` foreground probabilities"""


def check_plain(config: RunConfig) -> None:
    """Refuse what the plain step does not do.

    Raises:
        ConfigError: naming the option.
    """
    found = {
        "assignment.threshold.kind": config.assignment.threshold.kind != "fixed_pair",
        "assignment.reliability": config.assignment.reliability,
        "losses.separation": config.losses.separation > 0,
        "training.micro_batch_size": config.training.micro_batch_size
        not in (0, config.training.global_batch_size),
        "kind": config.kind != "cosa",
    }
    for key, refused in found.items():
        if refused:
            raise ConfigError(f"the plain step has no {key} of this recipe; compare with a *_released recipe")


def plain_labels(state: TrainState, batch: Batch, precision: Precision = nullcontext) -> PlainLabels:
    """Let the assignment network label the weak views of a batch; it runs in the context of `precision`."""
    settings = state.config.assignment
    with precision():
        seen = plain_multi_scale(
            state.assignment,
            normalise(batch.weak),
            settings.scales,
            settings.aux_cam_last_scale_only,
            settings.flip,
        )
    stride = state.online.backbone.stride
    grid = (batch.weak.shape[-2] // stride, batch.weak.shape[-1] // stride)
    thresholds = state.thresholds.current()

    def label(cam: Tensor, pair: Threshold) -> Tensor:
        low, high = float(pair.low), float(pair.high)
        return plain_cam_pseudo_label(cam, batch.labels, batch.boxes, low, high, settings.downscale)

    return PlainLabels(
        label(seen.cam, thresholds.main),
        label(seen.aux_cam, thresholds.aux),
        plain_segmentation_pseudo_label(seen.segmentation, batch.labels, grid, settings.temperature),
    )


def plain_terms(
    state: TrainState,
    batch: Batch,
    labels: PlainLabels,
    energy: EnergyLoss = plain_energy,
    precision: Precision = nullcontext,
) -> dict[str, Tensor]:
    """Every loss of the online network on the strong views, and their weighted `total`."""
    losses = state.config.losses
    with precision():
        output = state.online(normalise(batch.strong))
    size = (batch.strong.shape[-2], batch.strong.shape[-1])
    logits = functional.interpolate(
        output.segmentation.float(), size=size, mode="bilinear", align_corners=False
    )
    terms = {
        "classification": functional.multilabel_soft_margin_loss(output.logits, batch.labels),
        "aux_classification": functional.multilabel_soft_margin_loss(output.aux_logits, batch.labels),
        "cam_to_seg": plain_cam_to_seg(logits, labels.cam),
        "aux_cam_to_seg": plain_cam_to_seg(logits, labels.aux_cam),
        "seg_to_cam": plain_seg_to_cam(output.cam, labels.segmentation),
        "energy": energy(batch.strong, logits, labels.cam, batch.boxes, losses.energy_kernel),
    }
    gate = float(state.co_training)
    cam_to_seg = (1 - losses.aux_weight) * terms["cam_to_seg"] + losses.aux_weight * terms["aux_cam_to_seg"]
    gated = (
        losses.cam_to_seg * cam_to_seg
        + losses.seg_to_cam * terms["seg_to_cam"]
        + losses.energy * terms["energy"]
    )
    return {**terms, "total": terms["classification"] + terms["aux_classification"] + gate * gated}


def plain_step(
    state: TrainState, batch: Batch, energy: EnergyLoss = plain_energy, precision: Precision = nullcontext
) -> dict[str, Tensor]:
    """Take one optimiser step; the networks end up as after `training.step.training_step`.

    Args:
        state: changed in place; on one rank.
        batch: the whole global batch on the networks' device.
        energy: computes the energy; the plain one is a hundred times as slow as the released code's C++.
        precision: makes the context in which both networks run, such as an accelerator's autocast.

    Returns:
        The loss terms, detached.

    Raises:
        ConfigError: the recipe asks for what the released code does not do.
    """
    config = state.config
    check_plain(config)
    factor = learning_rate_factor(state.step, config.training.steps, config.optimizer)
    set_learning_rate(state.optimizer, factor)
    with explicit_attention(state.online, state.assignment), one_by_one(state.optimizer):
        labels = plain_labels(state, batch, precision)
        terms = plain_terms(state, batch, labels, energy, precision)
        state.optimizer.zero_grad()
        torch.autograd.backward(terms["total"])
        state.optimizer.step()
    plain_move_towards(state.assignment.parameters(), state.online.parameters(), config.assignment.momentum)
    state.step += 1
    return {name: term.detach() for name, term in terms.items()}
