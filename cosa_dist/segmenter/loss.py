"""The second stage's loss: cross-entropy with masks, of which some pixels do not count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.reading.samples import Batch


def pixel_weights(batch: Batch, weigh: bool) -> Tensor:
    """Weight of each pixel of a batch, `[B, S, S]` float32: 0 where the mask says ignore, else 1.

    With `weigh`, the stored reliability in 0..1 instead of 1.

    Raises:
        ValueError: the batch has no masks, or no reliability that could weigh.
    """
    if batch.masks is None:
        raise ValueError("a segmenter needs masks: the batch has none")
    counted = (batch.masks != IGNORE).float()
    if not weigh:
        return counted
    if batch.reliability is None:
        raise ValueError(
            "segmenter.weigh: the shards hold no reliability; make the pseudo-masks with "
            "pseudo_masks.reliability true"
        )
    return counted * batch.reliability.float() / 255.0


def mask_loss(segmentation: Tensor, masks: Tensor, weights: Tensor, divide_by: Tensor) -> Tensor:
    """Weighted cross-entropy, summed over the pixels and divided by a number that all ranks agree on.

    Args:
        segmentation: `[B, C + 1, h, w]` logits, enlarged bilinearly to the masks' size.
        masks: `[B, S, S]` classes; 255 does not count.
        weights: `[B, S, S]` of the pixels.
        divide_by: usually the sum of the weights of the global batch.

    Returns:
        A scalar, float32; 0 with zero gradients where no pixel counts.
    """
    size = (masks.shape[-2], masks.shape[-1])
    enlarged = functional.interpolate(segmentation.float(), size=size, mode="bilinear", align_corners=False)
    each = functional.cross_entropy(enlarged, masks.long(), ignore_index=IGNORE, reduction="none")
    return (each * weights).sum() / divide_by.clamp(min=torch.finfo(torch.float32).tiny)
