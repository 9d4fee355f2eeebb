"""The assignment: all that the assignment network tells the online network about a batch.

Pseudo-labels from both CAMs and from the segmentation, how far each pixel of the former can be trusted, the
pixels that contrastive separation compares, and the activations that the threshold search learns from. A
part that is switched off is None and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, present_classes
from cosa_dist.assignment.activation_histogram import activation_histogram
from cosa_dist.assignment.boxes import inside_boxes
from cosa_dist.assignment.cam_label import cam_pseudo_label, label_by_threshold
from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.reliability import PerplexitySettings, reliability
from cosa_dist.assignment.reliable_pixels import ReliablePixels, SelectionSettings, reliable_pixels
from cosa_dist.assignment.segmentation_label import segmentation_pseudo_label
from cosa_dist.assignment.strongest_class import strongest_class
from cosa_dist.assignment.threshold import SingleThreshold, Threshold, Thresholds
from cosa_dist.stopwatch import part


@dataclass(frozen=True)
class Assignment:
    """The pseudo-labels of one batch."""

    cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the main CAM: 0 background, 1..C classes, 255 ignore."""
    aux_cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the auxiliary CAM."""
    segmentation_pseudo_label: Tensor
    """`[B, C, h, w]` foreground probabilities at the CAM's grid."""
    reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the main CAM's label, 0 where it is ignored; None: all equal."""
    aux_reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the auxiliary CAM's label, likewise."""
    reliable_pixels: ReliablePixels | None = None
    """Pixels of the CAM's grid for contrastive separation."""
    histograms: Tensor | None = None
    """`[2, N]` int64 activations of the main and the auxiliary CAM for the threshold search."""


@dataclass(frozen=True)
class AssignmentSettings:
    """How pseudo-labels are made, and which further parts are wanted."""

    temperature: float = 0.01
    """Of the segmentation pseudo-label."""
    downscale: int = 2
    """CAM pseudo-labels of a pair are decided at the crop's size divided by this."""
    weigh: bool = False
    """Whether CAM pseudo-labels come with reliability weights."""
    perplexity: PerplexitySettings = field(default_factory=PerplexitySettings)
    """Of the weights and of the selection."""
    selection: SelectionSettings | None = None
    """Pixels for contrastive separation; None: none."""
    count_activations: bool = False
    """Whether histograms for the threshold search are made."""


@part("pseudo-labels")
def make_assignment(
    multi_scale_output: MultiScaleOutput,
    labels: Tensor,
    boxes: Tensor,
    thresholds: Thresholds,
    cam_size: tuple[int, int],
    settings: AssignmentSettings = AssignmentSettings(),
) -> Assignment:
    """Turn the assignment network's view of a batch into pseudo-labels (released code, paper).

    The result may be saved for a backward pass even if the caller is in inference mode.

    Args:
        multi_scale_output: Of the assignment network on the weak views.
        labels: `[B, C]` multi-hot image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        thresholds: Of the main and the auxiliary CAM.
        cam_size: Height and width of the online network's CAM.
        settings: Pseudo-labels and further parts.

    Returns:
        The pseudo-labels and parts; none carries a gradient.

    Raises:
        ValueError: If shapes do not fit.
    """
    seen = multi_scale_output
    # Tensors made in inference mode cannot be saved for backward, and the losses must save these.
    with torch.inference_mode(False), torch.no_grad():
        present = present_classes(labels) if seen.present is None else seen.present
        label, weight = _label(seen.cam, labels, present, boxes, thresholds.main, settings)
        aux_label, aux_weight = _label(seen.aux_cam, labels, present, boxes, thresholds.aux, settings)
        return Assignment(
            cam_pseudo_label=label,
            aux_cam_pseudo_label=aux_label,
            segmentation_pseudo_label=segmentation_pseudo_label(
                seen.segmentation, labels, cam_size, settings.temperature
            ),
            reliability=weight,
            aux_reliability=aux_weight,
            reliable_pixels=_pixels(seen.aux_cam, present, boxes, thresholds.aux, cam_size, settings),
            histograms=_histograms(seen, present, boxes) if settings.count_activations else None,
        )


def _pixels(
    aux_cam: Tensor,
    present: PresentClasses,
    boxes: Tensor,
    threshold: Threshold,
    grid: tuple[int, int],
    settings: AssignmentSettings,
) -> ReliablePixels | None:
    """Pixels for contrastive separation, if wanted."""
    if settings.selection is None:
        return None
    return reliable_pixels(aux_cam, present, boxes, threshold, grid, settings.selection, settings.perplexity)


def _histograms(seen: MultiScaleOutput, present: PresentClasses, boxes: Tensor) -> Tensor:
    """Activations `[2, N]` of the main and the auxiliary CAM."""
    return torch.stack([activation_histogram(cam, present, boxes) for cam in (seen.cam, seen.aux_cam)])


def _label(
    cam: Tensor,
    labels: Tensor,
    present: PresentClasses,
    boxes: Tensor,
    threshold: Threshold,
    settings: AssignmentSettings,
) -> tuple[Tensor, Tensor | None]:
    """Pseudo-label `[B, H, W]` of one CAM and, if wanted, its weights."""
    single = isinstance(threshold, SingleThreshold)
    strongest = strongest_class(cam, present) if single or settings.weigh else None
    if single and strongest is not None:
        valid = inside_boxes(boxes, (cam.shape[-2], cam.shape[-1]))
        label = label_by_threshold(strongest, valid, threshold)
    else:
        low, high = threshold.low, threshold.high
        label = cam_pseudo_label(cam, labels, boxes, low, high, settings.downscale, present=present)
    if not settings.weigh or strongest is None:
        return label, None
    return label, reliability(strongest.value, label, threshold, settings.perplexity)
