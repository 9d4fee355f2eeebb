"""The strongest present class at each pixel and its activation: what thresholds are compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, gather_classes


class StrongestClass(NamedTuple):
    """The winner among the present classes at each pixel."""

    value: Tensor
    """`[B, H, W]` float32 largest CAM value of the present classes (v); 0 without image labels."""
    name: Tensor
    """`[B, H, W]` int64 its class, 1..C; 0 without image labels."""


def strongest_class(
    cam: Tensor, present: PresentClasses, size: tuple[int, int] | None = None
) -> StrongestClass:
    """Find the strongest present class, on the CAM's own pixels or on another grid.

    Args:
        cam: `[B, C, H, W]` normalised CAMs; planes of absent classes are not read.
        present: `present_classes` of the image labels.
        size: Height and width to resize to (bilinear) before the comparison.
    """
    planes = gather_classes(cam, present.index).float()
    if size is not None and planes.shape[-2:] != size:
        planes = functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    planes = planes.masked_fill(~present.valid[:, :, None, None], float("-inf"))
    value, slot = planes.max(dim=1)
    name = (present.index + 1).gather(1, slot.flatten(1)).view_as(slot)
    return StrongestClass(value.clamp(min=0.0), name.masked_fill(value.isneginf(), 0))
