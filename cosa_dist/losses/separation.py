"""Contrastive separation in CAMs (CSC): pixels of one region agree, pixels of different regions do not.

Objects that nearly always occur together (trains and rails) end up in one CAM, because the image labels
cannot tell them apart. The auxiliary CAM's reliable pixels say which pixels of an image belong together; an
InfoNCE loss pulls their vectors in the main CAM together and pushes the others away (paper; the equation
could not be read, this form is reconstructed).
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.reliable_pixels import ReliablePixels
from cosa_dist.data.catalog import IGNORE

COUNT_EPSILON = 1e-6
SHORTEST = 1e-3
"""Shorter vectors are not stretched to length 1: their gradient would have no bound."""
EXCLUDED = -1e4
"""Stands for the similarity of pixels that do not take part; finite, so that gradients are."""


def separation_pairs(label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs of pixels attract and repel each other, and which pixels are anchors.

    Args:
        label: `[B, K]` region of each pixel, 255 for none.

    Returns:
        `[B, K, K]` bool positives (one region, another pixel) and negatives (other regions), and `[B, K]`
        bool anchors: pixels with at least one of each.
    """
    used = label != IGNORE
    both = used[:, :, None] & used[:, None, :]
    same = label[:, :, None] == label[:, None, :]
    itself = torch.eye(label.shape[1], dtype=torch.bool, device=label.device)
    positive, negative = both & same & ~itself, both & ~same
    return positive, negative, positive.any(dim=-1) & negative.any(dim=-1)


def count_anchors(pixels: ReliablePixels) -> Tensor:
    """Number of anchors of the batch, a float32 scalar that stays on the device."""
    return separation_pairs(pixels.label)[2].sum().float()


def separation_loss(
    maps: Tensor, pixels: ReliablePixels, anchors: Tensor | None = None, temperature: float = 0.5
) -> Tensor:
    """InfoNCE over the reliable pixels of each image.

    With `s_ij` the cosine of two pixels' vectors over the temperature, an anchor i costs the mean over its
    positives j of `-log(exp(s_ij) / (exp(s_ij) + sum_k exp(s_ik)))`, k over its negatives; the loss is
    the mean over all anchors of the global batch. Without anchors it is 0 with zero gradient.

    Args:
        maps: `[B, D, h, w]` main CAM, or another map on its grid.
        pixels: Of the same grid; memory grows with the square of their number K per image.
        anchors: Scalar number of anchors to divide by; default: those of `pixels`. For a batch cut into N
            parts give the sum of `count_anchors` over all parts **divided by N** to each part; the
            mean of the parts' losses is then the loss of the whole batch (ours).
        temperature: Of the softmax.

    Returns:
        Scalar, float32 (float64 for float64 maps).

    Raises:
        ValueError: If maps and pixels do not belong together or the temperature is not positive.
    """
    if maps.ndim != 4 or len(maps) != len(pixels.label) or maps.shape[-2:].numel() < pixels.label.shape[1]:
        raise ValueError(
            f"separation_loss needs maps [B, D, h, w] and pixels [B, K] of the same grid, "
            f"got {tuple(maps.shape)} and {tuple(pixels.label.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    positive, negative, anchor = separation_pairs(pixels.label)
    with torch.autocast(maps.device.type, enabled=False):
        vectors = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
        index = pixels.position[:, None, :].expand(-1, vectors.shape[1], -1)
        vectors = functional.normalize(vectors.gather(2, index), dim=1, eps=SHORTEST)
        similarity = vectors.transpose(1, 2) @ vectors / temperature
        repulsion = similarity.masked_fill(~negative, EXCLUDED).logsumexp(dim=-1, keepdim=True)
        cost = functional.softplus(repulsion - similarity).masked_fill(~positive, 0.0).sum(dim=-1)
        cost = cost / positive.sum(dim=-1).clamp(min=1)
        total = cost.masked_fill(~anchor, 0.0).sum()
    number = anchor.sum() if anchors is None else anchors
    return total / (number.to(total) + COUNT_EPSILON)
