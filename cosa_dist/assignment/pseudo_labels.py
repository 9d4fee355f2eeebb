"""The assignment: all that the assignment network tells the online network about a batch.

Pseudo-labels from both CAMs and from the segmentation, how far each pixel of the former can be trusted, the
pixels that contrastive separation compares, and the activations that the threshold search learns from. A part
that is switched off is None and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, inside_boxes, present_classes, strongest_class
from cosa_dist.assignment.cam_label import cam_pseudo_label, label_by_threshold, segmentation_pseudo_label
from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.mixture import activation_histogram
from cosa_dist.assignment.reliability import ReliablePixels, reliability, reliable_pixels
from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig, SeparationConfig
from cosa_dist.stopwatch import part


@dataclass(frozen=True)
class Assignment:
    """The pseudo-labels of one batch."""

    cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the main CAM: 0 background, 1..C classes, 255 ignore"""
    aux_cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the auxiliary CAM"""
    segmentation_pseudo_label: Tensor
    """`[B, C, h, w]` foreground probabilities at the CAM's grid"""
    reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the main CAM's label, 0 where it is ignored; None: all equal"""
    aux_reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the auxiliary CAM's label, likewise"""
    reliable_pixels: ReliablePixels | None = None
    """pixels of the CAM's grid for contrastive separation"""
    histograms: Tensor | None = None
    """`[2, BINS]` int64 activations of the main and the auxiliary CAM for the threshold search"""


@part("pseudo-labels")
def make_assignment(
    output: MultiScaleOutput,
    labels: Tensor,
    boxes: Tensor,
    thresholds: Thresholds,
    cam_size: tuple[int, int],
    config: AssignmentConfig,
    *,
    separation: SeparationConfig | None = None,
    count_activations: bool = False,
) -> Assignment:
    """Turn the assignment network's output on the weak views into pseudo-labels (released code, paper).

    Args:
        output: of the multi-scale pass.
        labels: `[B, C]` multi-hot image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        thresholds: of both CAMs.
        cam_size: height and width of the online network's CAM.
        config: of the pseudo-labels and their reliability.
        separation: also choose the pixels for contrastive separation.
        count_activations: also make the histograms for the threshold search.
    """
    # Tensors made in inference mode cannot be saved for backward, and the losses must save these.
    with torch.inference_mode(False), torch.no_grad():
        present = present_classes(labels) if output.present is None else output.present
        label, weight = _label(output.cam, present, boxes, thresholds.main, config)
        aux_label, aux_weight = _label(output.aux_cam, present, boxes, thresholds.aux, config)
        pixels = histograms = None
        if separation is not None:
            pixels = reliable_pixels(
                output.aux_cam, present, boxes, thresholds.aux, cam_size, config, separation
            )
        if count_activations:
            cams = (output.cam, output.aux_cam)
            histograms = torch.stack([activation_histogram(cam, present, boxes) for cam in cams])
        soft = segmentation_pseudo_label(output.segmentation, labels, cam_size, config.temperature)
        return Assignment(label, aux_label, soft, weight, aux_weight, pixels, histograms)


def _label(
    cam: Tensor, present: PresentClasses, boxes: Tensor, threshold: Threshold, config: AssignmentConfig
) -> tuple[Tensor, Tensor | None]:
    """Pseudo-label `[B, H, W]` of one CAM and, if wanted, its weights."""
    if not threshold.single and not config.reliability:
        return cam_pseudo_label(cam, present, boxes, threshold, config.downscale), None
    strongest = strongest_class(cam, present)
    if threshold.single:
        inside = inside_boxes(boxes, (cam.shape[-2], cam.shape[-1]))
        label = label_by_threshold(strongest, inside, threshold)
    else:
        label = cam_pseudo_label(cam, present, boxes, threshold, config.downscale)
    if not config.reliability:
        return label, None
    return label, reliability(strongest.value, label, threshold, config)
