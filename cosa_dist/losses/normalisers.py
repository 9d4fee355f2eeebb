"""What the losses divide by: pixels and anchors of the global batch.

A global batch is cut into parts, over ranks and over accumulation steps. Each part's losses are sums over
its own pixels divided by a share of the whole batch's number of them, so that the mean of the parts' losses
is the loss of the whole batch, however it is cut (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosa_dist.assignment.pseudo_labels import Assignment
from cosa_dist.losses.cam_to_seg import count_pixels
from cosa_dist.losses.separation import count_anchors


@dataclass(frozen=True)
class Normalisers:
    """Numbers of the whole batch over the number of its parts; they stay on the device."""

    pixels: Tensor
    """`[2]` background and foreground of the main CAM's pseudo-label: counts, or sums of reliability."""
    aux_pixels: Tensor
    """`[2]` of the auxiliary CAM's pseudo-label."""
    anchors: Tensor
    """Scalar, anchors of contrastive separation."""


def countings(assignment: Assignment) -> Tensor:
    """All numbers of one part in one vector `[5]` float32, to be summed over the parts."""
    pixels = count_pixels(assignment.cam_pseudo_label, assignment.reliability)
    aux_pixels = count_pixels(assignment.aux_cam_pseudo_label, assignment.aux_reliability)
    chosen = assignment.reliable_pixels
    anchors = pixels.new_zeros(()) if chosen is None else count_anchors(chosen)
    return torch.cat([pixels, aux_pixels, anchors[None]])


def normalisers(total: Tensor, parts: int) -> Normalisers:
    """Take the numbers of a whole batch apart.

    Args:
        total: `[5]` sum of `countings` over all parts.
        parts: Number of parts.
    """
    share = total / parts
    return Normalisers(share[0:2], share[2:4], share[4])
