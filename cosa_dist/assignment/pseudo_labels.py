"""Pseudo-labels: what the online network is told to predict.

CAM pseudo-label (CPL): a background plane at each of two heights competes with the CAMs of the
present classes, at reduced resolution; where the high plane loses is foreground, where even the
low plane wins is background, the rest and everything outside the valid box is ignored.
Segmentation pseudo-label (SPL): a sharp softmax over the allowed segmentation logits, read at
the grid of the CAM only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.activation import (
    PresentClasses,
    filter_logits_by_labels,
    gather_classes,
    present_classes,
)
from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.threshold import ThresholdPair

IGNORE = 255
"""Label of pixels that no loss reads."""


@dataclass(frozen=True)
class Assignment:
    """The pseudo-labels of one batch."""

    cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the main CAM: 0 background, 1..C classes, 255 ignore."""
    aux_cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the auxiliary CAM."""
    segmentation_pseudo_label: Tensor
    """`[B, C, h, w]` foreground probabilities at the CAM's grid."""


def inside_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask of the valid boxes.

    Args:
        boxes: `[B, 4]` integers (top, bottom, left, right), half-open; may be empty.
        size: Height and width in pixels.

    Returns:
        `[B, H, W]` bool.
    """
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(dim=1))
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def cam_pseudo_label(
    cam: Tensor,
    labels: Tensor,
    boxes: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    downscale: int = 2,
    *,
    present: PresentClasses | None = None,
) -> Tensor:
    """Label pixels from CAMs with a pair of thresholds (released code).

    Args:
        cam: `[B, C, H, W]` normalised CAMs; planes of absent classes are not read.
        labels: `[B, C]` multi-hot image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        low: Height of the low background plane, a number or a 0-dimensional tensor.
        high: Height of the high background plane, likewise.
        downscale: The planes compete at `H // downscale` by `W // downscale`.
        present: `present_classes(labels)`, if the caller has it already.

    Returns:
        `[B, H, W]` int64: 0 background, 1..C classes, 255 ignore.

    Raises:
        ValueError: If the shapes do not fit or `downscale` leaves no pixel.
    """
    height, width = cam.shape[-2:]
    if labels.shape != cam.shape[:2] or boxes.shape != (cam.shape[0], 4):
        raise ValueError(
            f"CAMs {tuple(cam.shape)} need labels [B, C] and boxes [B, 4], "
            f"got {tuple(labels.shape)} and {tuple(boxes.shape)}"
        )
    if downscale < 1 or min(height, width) < downscale:
        raise ValueError(f"downscale {downscale} does not fit CAMs of {height} x {width} pixels")
    present = present_classes(labels) if present is None else present
    planes = gather_classes(cam, present.index).float()
    planes = functional.interpolate(
        planes,
        size=(height // downscale, width // downscale),
        mode="bilinear",
        align_corners=False,
    )
    planes = planes.masked_fill(~present.valid[:, :, None, None], float("-inf"))
    confident = _winner(planes, high, present, (height, width))
    lenient = _winner(planes, low, present, (height, width))
    background = (confident == 0) & (lenient == 0)
    labelled = ((confident > 0) | background) & inside_boxes(boxes, (height, width))
    return confident.masked_fill(~labelled, IGNORE)


def _winner(
    planes: Tensor, background: float | Tensor, present: PresentClasses, size: tuple[int, int]
) -> Tensor:
    """Class `[B, H, W]` of the largest enlarged softmax, with the background at one height."""
    backdrop = torch.zeros_like(planes[:, :1]) + background
    probability = torch.cat([backdrop, planes], dim=1).softmax(dim=1)
    probability = functional.interpolate(probability, size=size, mode="bilinear", align_corners=False)
    slot = probability.max(dim=1).indices  # ten times as fast as argmax on the CPU
    names = functional.pad(present.index + 1, (1, 0))
    return names.gather(1, slot.flatten(1)).view_as(slot)


def segmentation_pseudo_label(
    segmentation: Tensor,
    labels: Tensor,
    cam_size: tuple[int, int],
    temperature: float = 0.01,
) -> Tensor:
    """Sharpened probabilities of the allowed classes at the CAM's grid (released code).

    Equals the softmax at full resolution followed by a bilinear resize, but only the four pixels
    that the resize reads for each grid point are computed.

    Args:
        segmentation: `[B, C + 1, H, W]` summed logits, background first.
        labels: `[B, C]` multi-hot image labels.
        cam_size: Height and width of the CAM's grid.
        temperature: The logits are divided by it; small values give nearly one-hot labels.

    Returns:
        `[B, C, h, w]` float32 foreground probabilities.

    Raises:
        ValueError: If the classes do not fit or the temperature is not positive.
    """
    if labels.shape != (segmentation.shape[0], segmentation.shape[1] - 1):
        raise ValueError(
            f"segmentation {tuple(segmentation.shape)} needs labels of one class less "
            f"(no background), got {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    rows, row_weight = _bilinear_reads(segmentation.shape[-2], cam_size[0], segmentation.device)
    columns, column_weight = _bilinear_reads(segmentation.shape[-1], cam_size[1], segmentation.device)
    read = segmentation[:, :, rows.flatten()[:, None], columns.flatten()].float()
    probability = (filter_logits_by_labels(read, labels) / temperature).softmax(dim=1)[:, 1:]
    corners = probability.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    along_rows = (corners * column_weight).sum(dim=-1)
    return (along_rows * row_weight[..., None]).sum(dim=-2)


def _bilinear_reads(full: int, reduced: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions and weights of a bilinear resize of one axis without aligned corners.

    Returns:
        `[reduced, 2]` int64 positions of the two pixels read, and their float32 weights.
    """
    centre = (torch.arange(reduced, device=device, dtype=torch.float32) + 0.5) * (full / reduced)
    source = (centre - 0.5).clamp(min=0)
    before = source.floor().long().clamp(max=full - 1)
    after = (before + 1).clamp(max=full - 1)
    fraction = source - before
    return torch.stack([before, after], 1), torch.stack([1 - fraction, fraction], 1)


def make_assignment(
    multi_scale_output: MultiScaleOutput,
    labels: Tensor,
    boxes: Tensor,
    main: ThresholdPair,
    aux: ThresholdPair,
    cam_size: tuple[int, int],
    temperature: float = 0.01,
    downscale: int = 2,
) -> Assignment:
    """Turn the assignment network's view of a batch into pseudo-labels (released code).

    The result may be saved for a backward pass even if the caller is in inference mode.

    Args:
        multi_scale_output: Of the assignment network on the weak views.
        labels: `[B, C]` multi-hot image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        main: Thresholds of the main CAM.
        aux: Thresholds of the auxiliary CAM.
        cam_size: Height and width of the online network's CAM.
        temperature: Of the segmentation pseudo-label.
        downscale: Of the CAM pseudo-labels.

    Returns:
        The three pseudo-labels; none carries a gradient.

    Raises:
        ValueError: If shapes do not fit.
    """
    # Tensors made in inference mode cannot be saved for backward, and the losses must save these.
    with torch.inference_mode(False), torch.no_grad():
        present = present_classes(labels)

        def from_cam(cam: Tensor, pair: ThresholdPair) -> Tensor:
            return cam_pseudo_label(cam, labels, boxes, pair.low, pair.high, downscale, present=present)

        return Assignment(
            cam_pseudo_label=from_cam(multi_scale_output.cam, main),
            aux_cam_pseudo_label=from_cam(multi_scale_output.aux_cam, aux),
            segmentation_pseudo_label=segmentation_pseudo_label(
                multi_scale_output.segmentation, labels, cam_size, temperature
            ),
        )
