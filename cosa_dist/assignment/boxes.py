"""Valid boxes: the part of a crop that shows the image, not padding."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def inside_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask of the valid boxes.

    Args:
        boxes: `[B, 4]` integers (top, bottom, left, right), half-open; may be empty.
        size: Height and width in pixels.

    Returns:
        `[B, H, W]` bool.
    """
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(dim=1))
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def inside_boxes_on_grid(boxes: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Grid points whose bilinear reading touches pixels inside the valid box alone.

    Args:
        boxes: `[B, 4]` in pixels.
        size: Height and width of the crop in pixels.
        grid: Height and width of the grid.

    Returns:
        `[B, h, w]` bool.
    """
    mask = inside_boxes(boxes, size)[:, None].float()
    share = functional.interpolate(mask, size=grid, mode="bilinear", align_corners=False)
    return share[:, 0] > 0.999
