"""The objective: all loss terms of one micro-batch and their weighted sum, `total`.

`classification_terms` is the objective while the loss warm-up runs, `co_training_terms` the whole one.
Nothing here waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.pseudo_labels import Assignment
from cosa_dist.config.method import LossConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.separation import COUNT_EPSILON, count_anchors, separation_loss
from cosa_dist.stopwatch import one_thread, part

if TYPE_CHECKING:
    from cosa_dist.data.reading.samples import Batch
    from cosa_dist.model.network import NetworkOutput

LossTerms = dict[str, Tensor]
"""Scalar loss terms of one micro-batch by name; each unweighted, `total` weighted."""
GATED_TERMS = ("cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy", "separation")
"""Terms that do not count while the loss warm-up runs."""


class LossNormalizers(NamedTuple):
    """What the losses divide by: pixels and anchors of the global batch over the number of its parts (ours).

    A global batch is cut into parts, over ranks and accumulation steps. Each part's losses are sums over its
    own pixels divided by these, so that the mean of the parts' losses (what averaging gradients amounts to)
    is the loss of the whole batch, however it is cut.
    """

    pixels: Tensor
    """`[2]` background and foreground of the main CAM's pseudo-label: counts, or sums of reliability"""
    aux_pixels: Tensor
    """`[2]` the same of the auxiliary CAM's pseudo-label"""
    anchors: Tensor
    """scalar, anchors of contrastive separation"""


def count_targets(assignment: Assignment) -> Tensor:
    """What the losses of one part count, in one vector `[5]` float32, to be summed over the parts."""
    pixels = count_pixels(assignment.cam_pseudo_label, assignment.reliability)
    aux_pixels = count_pixels(assignment.aux_cam_pseudo_label, assignment.aux_reliability)
    chosen = assignment.reliable_pixels
    anchors = pixels.new_zeros(()) if chosen is None else count_anchors(chosen)
    return torch.cat([pixels, aux_pixels, anchors[None]])


def loss_normalizers(counts: Tensor, parts: int) -> LossNormalizers:
    """Normalizers from the sum `[5]` of `count_targets` over all parts."""
    mean = counts / parts
    return LossNormalizers(mean[0:2], mean[2:4], mean[4])


@part("loss: classification")
@one_thread()
def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of `[B, C]` image logits, mean over images and classes (released code)."""
    return F.multilabel_soft_margin_loss(logits.float(), labels.float())


def count_pixels(label: Tensor, reliability: Tensor | None = None) -> Tensor:
    """Numbers `[2]` of background and foreground pixels of `[B, H, W]` labels, or sums of their weights.

    Ignored pixels (255) are neither; their weights must be 0.
    """
    if reliability is None:
        reliability = (label != IGNORE).float()
    background = label == 0
    parts = [reliability.float().masked_fill(other, 0.0).sum() for other in (~background, background)]
    return torch.stack(parts)


def cam_to_seg_loss(
    log_probabilities: Tensor, label: Tensor, counts: Tensor, reliability: Tensor | None = None
) -> Tensor:
    """CAM-to-segmentation loss (C2S): the decoder learns the CAM pseudo-label (released code).

    `0.5 sum_bg / (n_bg + 1e-6) + 0.5 sum_fg / (n_fg + 1e-6)` of the cross-entropy: background and foreground
    of the **global** batch count half each, so that the large background does not drown the objects. A half
    without any pixel is 0 and has zero gradient. With `reliability` r `[B, H, W]` (paper; 0 where ignored)
    the sums are of r times it and the n are sums of r: the same as weights normalised to mean 1 over either
    half. `log_probabilities` `[B, K, H, W]` and `label` `[B, H, W]` are of one size; `counts` `[2]` is n, see
    `LossNormalizers`.
    """
    label = label.long()
    scale = 0.5 / (counts.to(log_probabilities) + COUNT_EPSILON)
    loss = F.nll_loss(log_probabilities, label, ignore_index=IGNORE, reduction="none")
    weight = torch.where(label == 0, scale[0], scale[1])
    if reliability is not None:
        weight = weight * reliability
    return (loss * weight).sum()


@part("loss: S2C")
@one_thread()
def seg_to_cam_loss(cam: Tensor, target: Tensor) -> Tensor:
    """Segmentation-to-CAM loss (S2C): the raw CAM learns the segmentation pseudo-label (released code).

    Multi-label soft margin loss of the ReLU of `cam` at each grid point, also of padding; both are
    `[B, C, h, w]`. A negative activation gets no gradient, and a class absent everywhere costs log 2.
    """
    return F.multilabel_soft_margin_loss(cam.float().relu(), target.float())


def classification_terms(output: NetworkOutput, labels: Tensor) -> LossTerms:
    """Return the objective of the loss warm-up: the two classification losses, all else 0 without gradient.

    `output` is the online network's on the strong views, `labels` `[B, C]` are multi-hot.
    """
    classification = classification_loss(output.logits, labels)
    aux_classification = classification_loss(output.aux_logits, labels)
    return {
        "classification": classification,
        "aux_classification": aux_classification,
        **dict.fromkeys(GATED_TERMS, classification.new_zeros(())),
        "total": classification + aux_classification,
    }


def co_training_terms(
    output: NetworkOutput,
    batch: Batch,
    assignment: Assignment,
    normalizers: LossNormalizers,
    config: LossConfig,
) -> LossTerms:
    """Return the objective of co-training (released code); a term of weight 0 is not computed.

    `output` is the online network's on the strong views, `assignment` the assignment network's on the weak
    views of the same crops.
    """
    terms = classification_terms(output, batch.labels)
    label, aux_label = assignment.cam_pseudo_label, assignment.aux_cam_pseudo_label
    size = (label.shape[-2], label.shape[-1])
    logits = F.interpolate(output.segmentation.float(), size=size, mode="bilinear", align_corners=False)
    # Before C2S: the lattice needs much memory for a moment, and what C2S keeps is not there yet.
    if config.energy:
        terms["energy"] = dense_energy_loss(batch.strong, logits, label, batch.boxes, config.energy_kernel)
    if config.cam_to_seg:
        with part("loss: C2S"):
            log_probabilities = logits.log_softmax(dim=1)
            terms["cam_to_seg"] = cam_to_seg_loss(
                log_probabilities, label, normalizers.pixels, assignment.reliability
            )
            terms["aux_cam_to_seg"] = cam_to_seg_loss(
                log_probabilities, aux_label, normalizers.aux_pixels, assignment.aux_reliability
            )
    if config.seg_to_cam:
        terms["seg_to_cam"] = seg_to_cam_loss(output.cam, assignment.segmentation_pseudo_label)
    if config.separation:
        if assignment.reliable_pixels is None:
            raise ValueError("separation needs an assignment with reliable pixels")
        contrast = config.separation_contrast
        maps = output.cam if contrast.space == "cam" else output.features
        terms["separation"] = separation_loss(
            maps, assignment.reliable_pixels, normalizers.anchors, contrast.temperature
        )
    return terms | {"total": total_loss(terms, config)}


def total_loss(terms: LossTerms, config: LossConfig) -> Tensor:
    """Weigh the terms (released code; the separation: paper).

    `cls + aux_cls + w_c2s ((1 - a) c2s + a aux_c2s) + w_s2c s2c + w_energy energy + w_separation separation`,
    with `a` the auxiliary weight.
    """
    cam_to_seg = (1.0 - config.aux_weight) * terms["cam_to_seg"] + config.aux_weight * terms["aux_cam_to_seg"]
    return (
        terms["classification"]
        + terms["aux_classification"]
        + config.cam_to_seg * cam_to_seg
        + config.seg_to_cam * terms["seg_to_cam"]
        + config.energy * terms["energy"]
        + config.separation * terms["separation"]
    )
