"""Class activation maps (CAMs) after the network, for the classes that an image's labels (tags) name.

Absent classes take no part in any pseudo-label, so work at full resolution is done for the present ones only:
`present_classes` names them, `gather_classes` picks their planes, `scatter_classes` puts them back. Boxes are
`[B, 4]` (top, bottom, left, right), half-open: the part of a crop that shows the image, not padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT_CLASS_LOGIT = -1e5
"""Segmentation logit of a class that is absent from the image (released code)."""


@dataclass(frozen=True)
class PresentClasses:
    """The present classes of each image, padded with absent ones to the largest number in the batch."""

    index: Tensor
    """`[B, P]` int64, ascending among the valid slots"""
    valid: Tensor
    """`[B, P]` bool"""


class StrongestClass(NamedTuple):
    """The winner among the present classes at each pixel."""

    value: Tensor
    """`[B, H, W]` float32 its activation (v), the largest; 0 without image labels"""
    name: Tensor
    """`[B, H, W]` int64 its class, 1..C; 0 without image labels"""


def present_classes(labels: Tensor, most: int = 0) -> PresentClasses:
    """List the present classes of multi-hot labels `[B, C]`; P is `most`, or counted (0), and at least 1.

    Counting makes the host wait for the device.
    """
    present = labels > 0.5
    count = most or max(1, int(present.sum(dim=1).max()))
    index = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)[:, :count]
    return PresentClasses(index, present.gather(1, index))


def gather_classes(planes: Tensor, index: Tensor) -> Tensor:
    """Pick the planes `index` `[B, P]` out of `planes` `[B, C, H, W]`; returns `[B, P, H, W]`."""
    return planes.gather(1, index[:, :, None, None].expand(-1, -1, *planes.shape[-2:]))


def scatter_classes(planes: Tensor, present: PresentClasses, classes: int) -> Tensor:
    """Put `planes` `[B, P, H, W]` of the present classes among zeros, `[B, classes, H, W]`."""
    planes = planes * present.valid[:, :, None, None]
    whole = planes.new_zeros((planes.shape[0], classes, *planes.shape[-2:]))
    return whole.scatter_(1, present.index[:, :, None, None].expand_as(planes), planes)


def min_max_normalise(cam: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Stretch each map of `[B, C, H, W]` to [0, 1), float32 (released code).

    `(x - min) / (max - min + epsilon)`; epsilon keeps a constant map at 0.
    """
    cam = cam.float()
    shifted = cam - cam.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + epsilon)


def filter_logits_by_labels(segmentation: Tensor, labels: Tensor) -> Tensor:
    """Set the logits `[B, C + 1, H, W]` of classes absent from `labels` `[B, C]` to -1e5 (released code)."""
    absent = F.pad(labels <= 0.5, (1, 0), value=False)
    return segmentation.masked_fill(absent[:, :, None, None], ABSENT_CLASS_LOGIT)


def strongest_class(
    cam: Tensor, present: PresentClasses, size: tuple[int, int] | None = None
) -> StrongestClass:
    """Find the strongest present class of CAMs `[B, C, H, W]`, resized to `size` (bilinear) first."""
    planes = gather_classes(cam, present.index).float()
    if size is not None and planes.shape[-2:] != size:
        planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    planes = planes.masked_fill(~present.valid[:, :, None, None], float("-inf"))
    value, slot = planes.max(dim=1)
    name = (present.index + 1).gather(1, slot.flatten(1)).view_as(slot)
    return StrongestClass(value.clamp(min=0.0), name.masked_fill(value.isneginf(), 0))


def inside_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask `[B, H, W]` bool of the valid boxes in crops of this height and width."""
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(dim=1))
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def inside_boxes_on_grid(boxes: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Grid points `[B, h, w]` bool that a bilinear resize reads from pixels inside the valid box alone."""
    mask = inside_boxes(boxes, size)[:, None].float()
    fraction = F.interpolate(mask, size=grid, mode="bilinear", align_corners=False)
    return fraction[:, 0] > 0.999
