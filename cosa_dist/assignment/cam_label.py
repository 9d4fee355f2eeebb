"""CAM pseudo-label (CPL): what the decoder is told to predict.

With a pair of thresholds (released code) a background plane at each of two heights competes with the CAMs
of the present classes, at reduced resolution; where the high plane loses is foreground, where even the low
plane wins is background, the rest is ignored. With a single threshold (paper) the strongest class is
compared with it at each pixel and nothing is left between. Everything outside the valid box is ignored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, gather_classes, present_classes
from cosa_dist.assignment.boxes import inside_boxes
from cosa_dist.assignment.strongest_class import StrongestClass
from cosa_dist.assignment.threshold import Threshold
from cosa_dist.data.catalog import IGNORE


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


def label_by_threshold(strongest: StrongestClass, valid: Tensor, threshold: Threshold) -> Tensor:
    """Class where the activation reaches the (high) threshold, background below the (low) one.

    Args:
        strongest: `[B, H, W]` activation and class of the strongest present class.
        valid: `[B, H, W]` bool, inside the valid box.
        threshold: One border or a pair.

    Returns:
        `[B, H, W]` int64: 0 background, 1..C classes, 255 between the thresholds and outside the box.
    """
    value, name = strongest
    foreground = (value >= threshold.high) & (name > 0)
    background = (value < threshold.low) | (name == 0)
    label = torch.where(foreground, name, torch.zeros_like(name))
    return label.masked_fill(~((foreground | background) & valid), IGNORE)
