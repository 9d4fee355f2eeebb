"""The objective: all loss terms of one step and their weighted sum.

`classification_terms` is the objective while the loss warm-up runs, `co_training_terms` the
whole one. Both return `LossTerms`, whose `total` is what the step differentiates. Nothing here
waits for the device.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.pseudo_labels import Assignment
from cosa_dist.losses.cam_to_seg import balanced_negative_log_likelihood
from cosa_dist.losses.classification import classification_loss
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.seg_to_cam import seg_to_cam_loss

if TYPE_CHECKING:
    from cosa_dist.model.network import NetworkOutput


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the two classification losses, which count fully."""

    cam_to_seg: float = 0.1
    seg_to_cam: float = 0.05
    energy: float = 0.05
    aux_share: float = 0.5
    """Share of the auxiliary CAM's pseudo-label in the CAM-to-segmentation loss."""


@dataclass(frozen=True)
class EnergySettings:
    """Kernel of the dense energy; defaults are the released code's."""

    sigma_rgb: float = 15.0
    """In grey levels of 0..255."""
    sigma_xy: float = 100.0
    """In pixels of the unscaled image."""
    scale: float = 0.5
    """The energy is computed on an image of this relative size."""
    weight: float = 1e-7
    """Factor inside the energy, beside its weight in the objective."""


@dataclass(frozen=True)
class LossTerms:
    """Scalar loss terms of one step; each unweighted, `total` weighted."""

    classification: Tensor
    aux_classification: Tensor
    cam_to_seg: Tensor
    aux_cam_to_seg: Tensor
    seg_to_cam: Tensor
    energy: Tensor
    total: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms by name, detached and still on their device."""
        return {field.name: getattr(self, field.name).detach() for field in dataclasses.fields(self)}


def combine(
    *,
    classification: Tensor,
    aux_classification: Tensor,
    cam_to_seg: Tensor,
    aux_cam_to_seg: Tensor,
    seg_to_cam: Tensor,
    energy: Tensor,
    weights: LossWeights,
) -> LossTerms:
    """Weigh the terms (released code).

    `total = cls + aux_cls + w_c2s ((1 - s) c2s + s aux_c2s) + w_s2c s2c + w_energy energy`, with
    `s` the auxiliary share. All arguments are scalars.
    """
    share = weights.aux_share
    total = (
        classification
        + aux_classification
        + weights.cam_to_seg * ((1.0 - share) * cam_to_seg + share * aux_cam_to_seg)
        + weights.seg_to_cam * seg_to_cam
        + weights.energy * energy
    )
    return LossTerms(
        classification=classification,
        aux_classification=aux_classification,
        cam_to_seg=cam_to_seg,
        aux_cam_to_seg=aux_cam_to_seg,
        seg_to_cam=seg_to_cam,
        energy=energy,
        total=total,
    )


def classification_terms(output: NetworkOutput, labels: Tensor) -> LossTerms:
    """Return the objective of the loss warm-up: the two classification losses, all else 0.

    Args:
        output: Of the online network on the strong views.
        labels: `[B, C]` multi-hot image labels.

    Returns:
        The terms; those that do not count are constants without gradient.
    """
    classification = classification_loss(output.logits, labels)
    aux_classification = classification_loss(output.aux_logits, labels)
    nothing = classification.new_zeros(())
    return LossTerms(
        classification=classification,
        aux_classification=aux_classification,
        cam_to_seg=nothing,
        aux_cam_to_seg=nothing,
        seg_to_cam=nothing,
        energy=nothing,
        total=classification + aux_classification,
    )


def co_training_terms(
    output: NetworkOutput,
    labels: Tensor,
    assignment: Assignment,
    strong_images: Tensor,
    boxes: Tensor,
    *,
    counts: Tensor | None = None,
    aux_counts: Tensor | None = None,
    weights: LossWeights = LossWeights(),
    energy: EnergySettings = EnergySettings(),
) -> LossTerms:
    """Return the objective of co-training (released code; METHOD's total without separation).

    Args:
        output: Of the online network on the strong views.
        labels: `[B, C]` multi-hot image labels.
        assignment: The assignment network's pseudo-labels of the same crops.
        strong_images: `[B, 3, H, W]` strong views in 0..255, uint8 or float.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        counts: `[2]` pixels to divide the main CAM-to-segmentation loss by, see `cam_to_seg_loss`.
        aux_counts: Likewise for the auxiliary CAM's pseudo-label.
        weights: Weights of the terms; a weight of 0 for the energy leaves it uncomputed.
        energy: Kernel of the dense energy.

    Raises:
        ValueError: If shapes do not fit.
    """
    label, aux_label = assignment.cam_pseudo_label, assignment.aux_cam_pseudo_label
    classification = classification_loss(output.logits, labels)
    size = (label.shape[-2], label.shape[-1])
    segmentation = functional.interpolate(
        output.segmentation.float(), size=size, mode="bilinear", align_corners=False
    )
    log_probabilities = segmentation.log_softmax(dim=1)
    energy_term = classification.new_zeros(())
    if weights.energy:
        settings = dataclasses.asdict(energy)
        energy_term = dense_energy_loss(strong_images, segmentation, label, boxes, **settings)
    return combine(
        classification=classification,
        aux_classification=classification_loss(output.aux_logits, labels),
        cam_to_seg=balanced_negative_log_likelihood(log_probabilities, label, counts),
        aux_cam_to_seg=balanced_negative_log_likelihood(log_probabilities, aux_label, aux_counts),
        seg_to_cam=seg_to_cam_loss(output.cam, assignment.segmentation_pseudo_label),
        energy=energy_term,
        weights=weights,
    )
