"""CAM-to-segmentation loss (C2S): the decoder learns the CAM pseudo-label.

Cross-entropy, averaged separately over background and foreground pixels, half of the loss each,
so that the large background does not drown the objects. The two averages are over the pixels of
the **global** batch: pass the `counts` of all ranks and accumulation steps, and the loss does
not depend on how the batch is cut into parts. With reliability weights the averages are weighted ones, and
the sums of the weights take the place of the counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.data.catalog import IGNORE

COUNT_EPSILON = 1e-6


def count_pixels(label: Tensor, reliability: Tensor | None = None) -> Tensor:
    """Count background and foreground pixels, or sum their weights; ignored ones (255) are neither.

    Args:
        label: `[B, H, W]` labels.
        reliability: `[B, H, W]` weights, 0 where the label is ignored; default: 1 each.

    Returns:
        `[2]` float32 on the label's device (background, foreground); never read back to the host.
    """
    background = label == 0
    if reliability is not None:
        weights = reliability.float()
        behind = weights.masked_fill(~background, 0.0).sum()
        return torch.stack([behind, weights.masked_fill(background, 0.0).sum()])
    ignored = (label == IGNORE).sum()
    return torch.stack([background.sum(), label.numel() - background.sum() - ignored]).float()


def cam_to_seg_loss(
    logits: Tensor, label: Tensor, counts: Tensor | None = None, reliability: Tensor | None = None
) -> Tensor:
    """Cross-entropy with a CAM pseudo-label, balanced between background and foreground.

    `0.5 * sum_bg / (n_bg + 1e-6) + 0.5 * sum_fg / (n_fg + 1e-6)` (released code). Half of it
    without any pixel is 0 and has zero gradient, so a label that is ignored everywhere gives 0.
    With reliability weights r (paper) the sums are of r times the cross-entropy and the n are sums of r:
    the same as weights normalised to mean 1 over the foreground and over the background.

    Args:
        logits: `[B, K, H, W]` segmentation logits at the label's size.
        label: `[B, H, W]` with 0 background, 1..K-1 classes, 255 ignore.
        counts: `[2]` pixel counts (background, foreground) to divide by; default: those of
            `label`. For a batch cut into N parts (ranks times accumulation steps) give the sum of
            `count_pixels` over all parts **divided by N** to each part; the mean of the parts'
            losses (what averaging gradients amounts to) is then the loss of the whole batch
            (ours).
        reliability: `[B, H, W]` weights, not normalised; default: all pixels count the same.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: If the logits are not at the label's size.
    """
    if logits.ndim != 4 or (logits.shape[0], *logits.shape[2:]) != tuple(label.shape):
        raise ValueError(
            f"cam_to_seg_loss needs logits [B, K, H, W] at the label's size [B, H, W], "
            f"got {tuple(logits.shape)} and {tuple(label.shape)}; resize the logits first"
        )
    log_probabilities = logits.float().log_softmax(dim=1)
    return balanced_negative_log_likelihood(log_probabilities, label, counts, reliability)


def balanced_negative_log_likelihood(
    log_probabilities: Tensor,
    label: Tensor,
    counts: Tensor | None = None,
    reliability: Tensor | None = None,
) -> Tensor:
    """Do the part of `cam_to_seg_loss` that follows the log-softmax, for labels that share it.

    Args:
        log_probabilities: `[B, K, H, W]` float32.
        label: `[B, H, W]`, as in `cam_to_seg_loss`.
        counts: `[2]`, as in `cam_to_seg_loss`.
        reliability: `[B, H, W]`, as in `cam_to_seg_loss`.

    Returns:
        Scalar, float32.
    """
    label = label.long()
    counts = count_pixels(label, reliability) if counts is None else counts
    share = 0.5 / (counts.to(log_probabilities) + COUNT_EPSILON)
    loss = functional.nll_loss(log_probabilities, label, ignore_index=IGNORE, reduction="none")
    weight = torch.where(label == 0, share[0], share[1])
    if reliability is not None:
        weight = weight * reliability
    return (loss * weight).sum()
