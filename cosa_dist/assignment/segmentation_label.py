"""Segmentation pseudo-label (SPL): what the CAM is told to predict.

A sharp softmax over the allowed segmentation logits, read at the grid of the CAM only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa_dist.assignment.activation import filter_logits_by_labels


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
