"""Contrastive separation in CAMs (CSC): pixels of one region agree, pixels of different regions do not.

Objects that nearly always occur together (trains and rails) end up in one CAM, because the image labels
cannot tell them apart. The auxiliary CAM's reliable pixels say which pixels of an image belong together; an
InfoNCE loss pulls their vectors in the main CAM together and pushes the others away (paper; the equation
could not be read, this form is reconstructed).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.reliability import ReliablePixels
from cosa_dist.data.catalog import IGNORE
from cosa_dist.stopwatch import part

COUNT_EPSILON = 1e-6
SHORTEST = 1e-3
"""Shorter vectors are not stretched to length 1: their gradient would be unbounded."""
EXCLUDED = -1e4
"""Stands for the similarity of pixels that do not take part; finite, so that gradients are."""


def separation_pairs(label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives `[B, K, K]` bool of each pixel, and the anchors `[B, K]` that have both.

    Positives are other pixels of the same region in `label` `[B, K]`, negatives are of another; 255 is
    neither.
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


@part("loss: separation")
def separation_loss(maps: Tensor, pixels: ReliablePixels, anchors: Tensor, temperature: float) -> Tensor:
    """InfoNCE over the reliable pixels of each image of `maps` `[B, D, h, w]`, at least float32.

    With `s_ij` the cosine of two pixels' vectors over the temperature, an anchor i costs the mean over its
    positives j of `-log(exp(s_ij) / (exp(s_ij) + sum_k exp(s_ik)))`, k over its negatives; the loss is the
    sum over the anchors divided by `anchors`, see `LossNormalizers`. Without anchors it is 0 with zero
    gradient.
    """
    positive, negative, anchor = separation_pairs(pixels.label)
    with torch.autocast(maps.device.type, enabled=False):
        vectors = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
        index = pixels.position[:, None, :].expand(-1, vectors.shape[1], -1)
        vectors = F.normalize(vectors.gather(2, index), dim=1, eps=SHORTEST)
        similarity = vectors.transpose(1, 2) @ vectors / temperature
        repulsion = similarity.masked_fill(~negative, EXCLUDED).logsumexp(dim=-1, keepdim=True)
        cost = F.softplus(repulsion - similarity).masked_fill(~positive, 0.0).sum(dim=-1)
        cost = cost / positive.sum(dim=-1).clamp(min=1)
        total = cost.masked_fill(~anchor, 0.0).sum()
    return total / (anchors.to(total) + COUNT_EPSILON)
