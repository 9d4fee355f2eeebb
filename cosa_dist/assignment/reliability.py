"""How far a pseudo-label can be trusted: perplexity and its inverse, the reliability.

CAM pseudo-labels are wrong mostly where the activation is near the threshold. The perplexity is large there
and falls with the distance; the losses weigh pixels by its inverse (RAW), and contrastive separation reads
only pixels of low perplexity. The paper's equation could not be read: this form is reconstructed from its
figures (largest 1 / P about 9.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosa_dist.assignment.threshold import Threshold
from cosa_dist.data.catalog import IGNORE

NEAREST = 1e-4
"""Smallest normalised distance from the threshold; keeps the perplexity finite."""


@dataclass(frozen=True)
class PerplexitySettings:
    """Shape of the perplexity `(-log(scale * distance)) ** power`."""

    scale: float = 0.9
    """a; below 1, so that the perplexity never reaches 0"""
    power: float = 1.0
    """b"""


def perplexity(
    value: Tensor,
    foreground: Tensor,
    threshold: Threshold,
    settings: PerplexitySettings = PerplexitySettings(),
) -> Tensor:
    """Perplexity P of labelling a pixel by its activation (paper; reconstructed form).

    `(-log(a (v - xi) / (1 - xi))) ** b` for foreground, `(-log(a (xi - v) / xi)) ** b` for background; the
    normalised distance is clamped to [1e-4, 1]. With a pair of thresholds, xi is the one on the pixel's
    side. With a = 0.9 and b = 1, P lies between 0.105 and 9.32.

    Args:
        value: Activations v in 0..1, any shape.
        foreground: Which pixels are labelled foreground, bool of the same shape.
        threshold: One border or a pair.
        settings: a and b.

    Returns:
        float32 (float64 for float64), the shape of `value`.
    """
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    high, low = _like(threshold.high, value), _like(threshold.low, value)
    above = (value - high) / (1.0 - high).clamp(min=NEAREST)
    below = (low - value) / low.clamp(min=NEAREST)
    distance = torch.where(foreground, above, below).clamp(NEAREST, 1.0)
    return (-(settings.scale * distance).log()) ** settings.power


def reliability(
    value: Tensor,
    label: Tensor,
    threshold: Threshold,
    settings: PerplexitySettings = PerplexitySettings(),
) -> Tensor:
    """Weight 1 / P of every labelled pixel, not yet normalised; 0 where the label is ignored.

    The losses divide by the weights' sum over the foreground and over the background of the global batch,
    which makes their mean 1 on either side.

    Args:
        value: `[B, H, W]` activations of the strongest present class.
        label: `[B, H, W]` pseudo-label made from them: 0 background, 1..C, 255 ignore.
        threshold: Which the label was made with.
        settings: Shape of the perplexity.

    Returns:
        `[B, H, W]` float32.
    """
    weight = perplexity(value, label > 0, threshold, settings).reciprocal()
    return weight.masked_fill(label == IGNORE, 0.0)


def _like(number: float | Tensor, other: Tensor) -> Tensor:
    """The number as a 0-dimensional tensor where `other` is, without waiting for the device."""
    return number.to(other) if isinstance(number, Tensor) else other.new_full((), number)
