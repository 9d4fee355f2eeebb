"""How far a pseudo-label can be trusted: perplexity, its inverse (the reliability), and the reliable pixels.

CAM pseudo-labels are wrong mostly where the activation is near the threshold; the perplexity is large there
and falls with the distance. The losses weigh pixels by its inverse (RAW), and contrastive separation reads
only pixels of low perplexity. The paper's equation could not be read: this form is reconstructed from its
figures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, inside_boxes_on_grid, strongest_class
from cosa_dist.assignment.threshold import Threshold
from cosa_dist.config.method import AssignmentConfig, SeparationConfig
from cosa_dist.data.catalog import IGNORE

NEAREST = 1e-4
"""Smallest normalised distance from the threshold; keeps the perplexity finite."""
GOLDEN_RATIO = 0.6180339887498949


class ReliablePixels(NamedTuple):
    """K pixels of each image, K the smaller of the grid's size and the largest number allowed."""

    position: Tensor
    """`[B, K]` int64 index into the flattened grid"""
    label: Tensor
    """`[B, K]` int64 auxiliary pseudo-class, 0 background, 1..C; 255 fills unused places"""


def perplexity(value: Tensor, foreground: Tensor, threshold: Threshold, config: AssignmentConfig) -> Tensor:
    """Perplexity P of labelling a pixel by its activation v (paper; reconstructed form), float32.

    `(-log(a (v - xi) / (1 - xi))) ** b` where `foreground` (bool, the shape of `value`) and
    `(-log(a (xi - v) / xi)) ** b` elsewhere; the normalised distance is clamped to [1e-4, 1]. With a pair of
    thresholds, xi is the one on the pixel's side.
    """
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    high, low = _like(threshold.high, value), _like(threshold.low, value)
    above = (value - high) / (1.0 - high).clamp(min=NEAREST)
    below = (low - value) / low.clamp(min=NEAREST)
    distance = torch.where(foreground, above, below).clamp(NEAREST, 1.0)
    return (-(config.perplexity_scale * distance).log()) ** config.perplexity_power


def reliability(value: Tensor, label: Tensor, threshold: Threshold, config: AssignmentConfig) -> Tensor:
    """Weight 1 / P `[B, H, W]` of every labelled pixel, 0 where the label is ignored; not yet normalised.

    `value` and `label` are the strongest class's activation and the label made from it. The losses divide by
    the weights' sum over the foreground and over the background of the global batch.
    """
    return perplexity(value, label > 0, threshold, config).reciprocal().masked_fill(label == IGNORE, 0.0)


def reliable_pixels(
    aux_cam: Tensor,
    present: PresentClasses,
    boxes: Tensor,
    threshold: Threshold,
    grid: tuple[int, int],
    config: AssignmentConfig,
    separation: SeparationConfig,
) -> ReliablePixels:
    """Choose the pixels of the CAM's grid `[h, w]` for contrastive separation (paper; reconstructed).

    Those whose perplexity in the auxiliary CAM `[B, C, H, W]` is low enough: it comes from a shallower layer
    and mixes up coexisting classes less than the main one.
    """
    strongest = strongest_class(aux_cam, present, grid)
    valid = inside_boxes_on_grid(boxes, (aux_cam.shape[-2], aux_cam.shape[-1]), grid)
    label = threshold.label(strongest, valid)
    sure = perplexity(strongest.value, label > 0, threshold, config) <= separation.max_perplexity
    return select_pixels(label.masked_fill(~sure, IGNORE), separation.max_pixels)


def select_pixels(label: Tensor, most: int) -> ReliablePixels:
    """Take at most `most` labelled pixels of each image of `[B, h, w]`, spread over the grid (ours).

    The same ones in every call. The loss's memory grows with the square of their number.
    """
    label = label.flatten(1)
    places = torch.arange(label.shape[1], device=label.device)
    if len(places) <= most:
        return ReliablePixels(places.expand_as(label), label)
    # Multiples of the golden ratio modulo 1 order the grid so that any first part of it is spread evenly.
    order = (places.double() * GOLDEN_RATIO).frac() + 2.0 * (label == IGNORE)
    position = order.topk(most, dim=1, largest=False).indices
    return ReliablePixels(position, label.gather(1, position))


def _like(number: float | Tensor, other: Tensor) -> Tensor:
    """The number as a 0-dimensional tensor where `other` is, without waiting for the device."""
    return number.to(other) if isinstance(number, Tensor) else other.new_full((), number)
