"""The activations of a batch as a histogram, the raw material of the threshold search.

A histogram of a few hundred bins says all that a one-dimensional mixture needs; unlike the values
themselves it has a fixed size, and those of micro-batches, ranks and steps are simply added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses
from cosa_dist.assignment.boxes import inside_boxes_on_grid
from cosa_dist.assignment.strongest_class import strongest_class

FLOOR = 0.05
"""Activations up to this value say nothing about the border (released code)."""
BINS = 380
"""Bins between the floor and 1: 0.0025 each."""
GRID = 16
"""Activations are read every so many pixels (released code)."""


def bin_centres(device: torch.device | str = "cpu") -> Tensor:
    """Centres of the bins, `[BINS]` float64."""
    width = (1.0 - FLOOR) / BINS
    return FLOOR + width * (torch.arange(BINS, device=device, dtype=torch.float64) + 0.5)


def count_activations(value: Tensor, counted: Tensor) -> Tensor:
    """Count activations above the floor.

    Args:
        value: Activations of any shape; values of 1 and more fall into the last bin, NaN into none.
        counted: Which of them count, bool of the same shape.

    Returns:
        `[BINS]` int64.
    """
    place = ((value.nan_to_num(0.0) - FLOOR) * (BINS / (1.0 - FLOOR))).floor().clamp(0, BINS - 1)
    weight = (counted & (value > FLOOR)).long()
    counts = torch.zeros(BINS, dtype=torch.int64, device=value.device)
    return counts.scatter_add_(0, place.long().flatten(), weight.flatten())


def activation_histogram(cam: Tensor, present: PresentClasses, boxes: Tensor) -> Tensor:
    """Histogram of the strongest present class's activation on a grid of 16 pixels (released code).

    Args:
        cam: `[B, C, H, W]` normalised CAMs.
        present: `present_classes` of the image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open; a grid point counts only where
            all pixels it is read from are inside.

    Returns:
        `[BINS]` int64.
    """
    height, width = cam.shape[-2:]
    grid = (max(1, height // GRID), max(1, width // GRID))
    counted = inside_boxes_on_grid(boxes, (height, width), grid)
    return count_activations(strongest_class(cam, present, grid).value, counted)
