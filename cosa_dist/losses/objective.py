"""The objective: all loss terms of one step and their weighted sum.

`classification_terms` is the objective while the loss warm-up runs, `co_training_terms` the
whole one. Both return `LossTerms`, whose `total` is what the step differentiates. Nothing here
waits for the device.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.pseudo_labels import Assignment
from cosa_dist.losses.cam_to_seg import balanced_negative_log_likelihood
from cosa_dist.losses.classification import classification_loss
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.normalisers import Normalisers, countings, normalisers
from cosa_dist.losses.seg_to_cam import seg_to_cam_loss
from cosa_dist.losses.separation import separation_loss
from cosa_dist.stopwatch import part

if TYPE_CHECKING:
    from cosa_dist.model.network import NetworkOutput


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the two classification losses, which count fully."""

    cam_to_seg: float = 0.1
    seg_to_cam: float = 0.05
    energy: float = 0.05
    aux_weight: float = 0.5
    """Share of the auxiliary CAM's pseudo-label in the CAM-to-segmentation loss."""
    separation: float = 0.0


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
class SeparationSettings:
    """What contrastive separation compares."""

    temperature: float = 0.5
    """Of its softmax."""
    space: Literal["cam", "features"] = "cam"
    """Vectors of the main CAM, or of the main feature map that it is made from."""


@dataclass(frozen=True)
class LossTerms:
    """Scalar loss terms of one step; each unweighted, `total` weighted."""

    classification: Tensor
    aux_classification: Tensor
    cam_to_seg: Tensor
    aux_cam_to_seg: Tensor
    seg_to_cam: Tensor
    energy: Tensor
    separation: Tensor
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
    separation: Tensor,
    weights: LossWeights,
) -> LossTerms:
    """Weigh the terms (released code; the separation: paper).

    `total = cls + aux_cls + w_c2s ((1 - s) c2s + s aux_c2s) + w_s2c s2c + w_energy energy
    + w_separation separation`, with `s` the auxiliary share. All arguments are scalars.
    """
    share = weights.aux_weight
    total = (
        classification
        + aux_classification
        + weights.cam_to_seg * ((1.0 - share) * cam_to_seg + share * aux_cam_to_seg)
        + weights.seg_to_cam * seg_to_cam
        + weights.energy * energy
        + weights.separation * separation
    )
    return LossTerms(
        classification=classification,
        aux_classification=aux_classification,
        cam_to_seg=cam_to_seg,
        aux_cam_to_seg=aux_cam_to_seg,
        seg_to_cam=seg_to_cam,
        energy=energy,
        separation=separation,
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
        separation=nothing,
        total=classification + aux_classification,
    )


def co_training_terms(
    output: NetworkOutput,
    labels: Tensor,
    assignment: Assignment,
    strong_images: Tensor,
    boxes: Tensor,
    *,
    divide_by: Normalisers | None = None,
    weights: LossWeights = LossWeights(),
    energy: EnergySettings = EnergySettings(),
    separation: SeparationSettings = SeparationSettings(),
) -> LossTerms:
    """Return the objective of co-training (released code; METHOD's total).

    Args:
        output: Of the online network on the strong views.
        labels: `[B, C]` multi-hot image labels.
        assignment: The assignment network's pseudo-labels of the same crops.
        strong_images: `[B, 3, H, W]` strong views in 0..255, uint8 or float.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        divide_by: Pixels and anchors of the global batch; default: those of this assignment.
        weights: Weights of the terms; a term with a weight of 0 is 0 and not computed.
        energy: Kernel of the dense energy.
        separation: What contrastive separation compares.

    Raises:
        ValueError: If shapes do not fit, or the separation counts and the assignment has no reliable pixels.
    """
    given = normalisers(countings(assignment), 1) if divide_by is None else divide_by
    classification = classification_loss(output.logits, labels)
    cam_to_seg = aux_cam_to_seg = seg_to_cam = energy_term = separated = classification.new_zeros(())
    segmentation = _enlarged(output.segmentation, assignment.cam_pseudo_label)
    if weights.cam_to_seg:
        cam_to_seg, aux_cam_to_seg = _cam_to_seg_terms(segmentation, assignment, given)
    if weights.seg_to_cam:
        seg_to_cam = seg_to_cam_loss(output.cam, assignment.segmentation_pseudo_label)
    if weights.energy:
        energy_term = _energy_term(segmentation, assignment, strong_images, boxes, energy)
    if weights.separation:
        separated = _separation_term(output, assignment, given, separation)
    return combine(
        classification=classification,
        aux_classification=classification_loss(output.aux_logits, labels),
        cam_to_seg=cam_to_seg,
        aux_cam_to_seg=aux_cam_to_seg,
        seg_to_cam=seg_to_cam,
        energy=energy_term,
        separation=separated,
        weights=weights,
    )


@part("loss: energy")
def _energy_term(
    segmentation: Tensor, assignment: Assignment, images: Tensor, boxes: Tensor, settings: EnergySettings
) -> Tensor:
    """Dense energy of logits `[B, C + 1, H, W]`, gated by the main CAM's pseudo-label."""
    label = assignment.cam_pseudo_label
    return dense_energy_loss(images, segmentation, label, boxes, **dataclasses.asdict(settings))


def _enlarged(segmentation: Tensor, label: Tensor) -> Tensor:
    """Segmentation logits at the pseudo-label's size, float32."""
    size = (label.shape[-2], label.shape[-1])
    return functional.interpolate(segmentation.float(), size=size, mode="bilinear", align_corners=False)


@part("loss: C2S")
def _cam_to_seg_terms(
    segmentation: Tensor, assignment: Assignment, given: Normalisers
) -> tuple[Tensor, Tensor]:
    """CAM-to-segmentation with the main and the auxiliary pseudo-label, from logits `[B, C + 1, H, W]`."""
    log_probabilities = segmentation.log_softmax(dim=1)
    main = balanced_negative_log_likelihood(
        log_probabilities, assignment.cam_pseudo_label, given.pixels, assignment.reliability
    )
    auxiliary = balanced_negative_log_likelihood(
        log_probabilities, assignment.aux_cam_pseudo_label, given.aux_pixels, assignment.aux_reliability
    )
    return main, auxiliary


@part("loss: separation")
def _separation_term(
    output: NetworkOutput, assignment: Assignment, given: Normalisers, settings: SeparationSettings
) -> Tensor:
    """Contrastive separation of the main CAM's (or feature map's) vectors."""
    if assignment.reliable_pixels is None:
        raise ValueError("separation needs an assignment with reliable pixels; give AssignmentSettings one")
    maps = output.cam if settings.space == "cam" else output.features
    return separation_loss(maps, assignment.reliable_pixels, given.anchors, settings.temperature)
