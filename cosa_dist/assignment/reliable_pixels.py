"""The pixels that contrastive separation compares: few, trusted, labelled by the auxiliary CAM.

The auxiliary CAM, from a shallower layer, mixes up coexisting classes less than the main one. Pixels of the
CAM's grid whose auxiliary perplexity is low enough take part, at most a fixed number of each image, so that
the loss's memory does not grow with the square of the crop's area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses
from cosa_dist.assignment.boxes import inside_boxes_on_grid
from cosa_dist.assignment.cam_label import label_by_threshold
from cosa_dist.assignment.reliability import PerplexitySettings, perplexity
from cosa_dist.assignment.strongest_class import strongest_class
from cosa_dist.assignment.threshold import Threshold
from cosa_dist.data.catalog import IGNORE

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class SelectionSettings:
    """Which pixels take part."""

    max_perplexity: float = 1.0
    """eps: pixels of a higher auxiliary perplexity stay out"""
    max_pixels: int = 1024
    """largest number of pixels of one image"""


class ReliablePixels(NamedTuple):
    """K pixels of each image, K the smaller of the grid's size and the largest number allowed."""

    position: Tensor
    """`[B, K]` int64 index into the flattened grid."""
    label: Tensor
    """`[B, K]` int64 auxiliary pseudo-class, 0 background, 1..C; 255 fills unused places."""


def reliable_pixels(
    aux_cam: Tensor,
    present: PresentClasses,
    boxes: Tensor,
    threshold: Threshold,
    grid: tuple[int, int],
    selection: SelectionSettings,
    shape: PerplexitySettings,
) -> ReliablePixels:
    """Choose the pixels of the CAM's grid that the auxiliary CAM is sure of (paper; reconstructed).

    Args:
        aux_cam: `[B, C, H, W]` normalised auxiliary CAMs.
        present: `present_classes` of the image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        threshold: Of the auxiliary CAM.
        grid: Height and width of the CAM's grid.
        selection: Which pixels take part.
        shape: Shape of the perplexity.
    """
    strongest = strongest_class(aux_cam, present, grid)
    valid = inside_boxes_on_grid(boxes, (aux_cam.shape[-2], aux_cam.shape[-1]), grid)
    label = label_by_threshold(strongest, valid, threshold)
    sure = perplexity(strongest.value, label > 0, threshold, shape) <= selection.max_perplexity
    return choose(label.masked_fill(~sure, IGNORE), selection.max_pixels)


def choose(label: Tensor, most: int) -> ReliablePixels:
    """Take at most `most` labelled pixels of each image, spread over the grid, always the same ones (ours).

    Args:
        label: `[B, h, w]` with 255 where a pixel must not take part.
        most: Largest number of pixels.
    """
    label = label.flatten(1)
    places = torch.arange(label.shape[1], device=label.device)
    if len(places) <= most:
        return ReliablePixels(places.expand_as(label), label)
    # Multiples of the golden ratio modulo 1 order the grid so that any first part of it is spread evenly.
    order = (places.double() * GOLDEN_RATIO).frac() + 2.0 * (label == IGNORE)
    position = order.topk(most, dim=1, largest=False).indices
    return ReliablePixels(position, label.gather(1, position))
