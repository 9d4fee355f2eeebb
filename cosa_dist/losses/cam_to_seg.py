"""CAM-to-segmentation loss (C2S): the decoder learns the CAM pseudo-label.

Cross-entropy, averaged separately over background and foreground pixels, half of the loss each, so that the
large background does not drown the objects. Both averages are over the pixels of the **global** batch. With
reliability weights they are weighted ones, and the sums of the weights take the place of the counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.data.catalog import IGNORE

COUNT_EPSILON = 1e-6


def count_pixels(label: Tensor, reliability: Tensor | None = None) -> Tensor:
    """Numbers `[2]` of background and foreground pixels of `[B, H, W]` labels, or sums of their weights.

    Ignored pixels (255) are neither; their weights must be 0.
    """
    if reliability is None:
        reliability = (label != IGNORE).float()
    background = label == 0
    parts = [reliability.float().masked_fill(other, 0.0).sum() for other in (~background, background)]
    return torch.stack(parts)


def cam_to_seg_loss(
    log_probabilities: Tensor, label: Tensor, counts: Tensor, reliability: Tensor | None = None
) -> Tensor:
    """`0.5 sum_bg / (n_bg + 1e-6) + 0.5 sum_fg / (n_fg + 1e-6)` of the cross-entropy (released code).

    A half without any pixel is 0 and has zero gradient. With reliability weights r (paper) the sums are of r
    times it and the n are sums of r: the same as weights normalised to mean 1 over either half.

    Args:
        log_probabilities: `[B, K, H, W]` float32 of the segmentation at the label's size.
        label: `[B, H, W]` with 0 background, 1..K-1 classes, 255 ignore.
        counts: `[2]` pixels (background, foreground) to divide by, see `LossNormalizers`.
        reliability: `[B, H, W]` weights, 0 where the label is ignored; default: all pixels count the same.
    """
    label = label.long()
    scale = 0.5 / (counts.to(log_probabilities) + COUNT_EPSILON)
    loss = F.nll_loss(log_probabilities, label, ignore_index=IGNORE, reduction="none")
    weight = torch.where(label == 0, scale[0], scale[1])
    if reliability is not None:
        weight = weight * reliability
    return (loss * weight).sum()
