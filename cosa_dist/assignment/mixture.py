"""Histograms of CAM activations and what separates their modes: Gaussian mixtures and hard splits.

Activations of background and of foreground pixels form modes in the histogram of CAM values. A histogram has
a fixed size, and those of micro-batches, ranks and steps are simply added. Every function takes histograms
`[..., N]`, so that several CAMs are fitted at once, and works in float64 on the device; on a GPU nothing here
waits for it: EM runs its largest number of iterations and a mask holds the fits that have converged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cosa_dist.assignment.activation import PresentClasses, inside_boxes_on_grid, strongest_class
from cosa_dist.stopwatch import one_thread

FLOOR = 0.05
"""Activations up to this value say nothing about the threshold (released code)."""
BINS = 380
"""Bins between the floor and 1: 0.0025 each."""
GRID = 16
"""Activations are read every so many pixels (released code)."""
TINY = 1e-12
"""Mass that keeps an empty component finite."""
SMALLEST_PART = 0.02
"""A part with a smaller fraction is no mode: a narrow spike would otherwise have an unbounded likelihood."""


class Mixture(NamedTuple):
    """K Gaussians for each histogram, `[..., K]` each, float64."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def bin_centres(device: torch.device | str = "cpu") -> Tensor:
    """Centres of the bins, `[BINS]` float64."""
    width = (1.0 - FLOOR) / BINS
    return FLOOR + width * (torch.arange(BINS, device=device, dtype=torch.float64) + 0.5)


@one_thread()
def count_activations(value: Tensor, counted: Tensor) -> Tensor:
    """Histogram `[BINS]` int64 of activations above the floor where `counted` is set, NaN not among them."""
    place = ((value.nan_to_num(0.0) - FLOOR) * (BINS / (1.0 - FLOOR))).floor().clamp(0, BINS - 1)
    weight = (counted & (value > FLOOR)).long()
    counts = torch.zeros(BINS, dtype=torch.int64, device=value.device)
    return counts.scatter_add_(0, place.long().flatten(), weight.flatten())


@one_thread()
def activation_histogram(cam: Tensor, present: PresentClasses, boxes: Tensor) -> Tensor:
    """Histogram `[BINS]` of the strongest present class's activation in `[B, C, H, W]` CAMs (released code).

    Read on a grid of 16 pixels, at the points that are read from inside the valid boxes alone.
    """
    height, width = cam.shape[-2:]
    grid = (max(1, height // GRID), max(1, width // GRID))
    counted = inside_boxes_on_grid(boxes, (height, width), grid)
    return count_activations(strongest_class(cam, present, grid).value, counted)


def _fractions(counts: Tensor) -> Tensor:
    """Counts `[..., N]` as fractions that sum to 1 (all 0 for an empty histogram), float64."""
    counts = counts.double()
    return counts / counts.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _powers(centres: Tensor) -> Tensor:
    """1, x and x^2 of the bin centres `[N]`, as `[3, N]` float64."""
    x = centres.double()
    return torch.stack([torch.ones_like(x), x, x.square()])


def _running_sum(values: Tensor) -> Tensor:
    """Cumulative sums of `[..., N]` float64; on a GPU a product, as its scan of floats is not repeatable."""
    return _running_product(values) if values.is_cuda else values.cumsum(dim=-1)


def _running_product(values: Tensor) -> Tensor:
    bins = values.shape[-1]
    return values @ torch.ones(bins, bins, dtype=values.dtype, device=values.device).triu()


def _from_moments(moments: Tensor, regularisation: float) -> Mixture:
    """Mixture of parts with the moments `[..., K, 3]`: their fraction, and their sums of x and of x^2."""
    weight, first, second = moments.unbind(dim=-1)
    weight = weight + TINY
    mean = first / weight
    variance = (second / weight - mean.square()).clamp(min=0.0) + regularisation
    return Mixture(weight, mean, variance)


def _log_joint(mixture: Mixture, powers: Tensor) -> Tensor:
    """Logarithm of weight times density of each component at each bin, `[..., K, N]`."""
    weight, mean, variance = mixture
    slope = mean / variance
    constant = weight.log() - 0.5 * ((2 * math.pi * variance).log() + mean * slope)
    return torch.stack([constant, slope, -0.5 / variance], dim=-1) @ powers


@torch.no_grad()
def fit_mixture(
    counts: Tensor,
    centres: Tensor,
    start: Mixture,
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-8,
    regularisation: float = 1e-6,
) -> Mixture:
    """Fit a Gaussian mixture by expectation-maximisation (EM), with scikit-learn's stopping rule.

    It has converged where the mean log-likelihood changes by less than the tolerance; `regularisation` is
    added to every variance. The components are ordered by their means; those of an empty histogram are
    finite, but mean nothing.
    """
    powers, fraction = _powers(centres), _fractions(counts)
    mixture = start
    previous = torch.full_like(fraction[..., 0], -math.inf)
    converged = torch.zeros_like(previous, dtype=torch.bool)
    for _ in range(max_iterations):
        joint = _log_joint(mixture, powers)
        responsibility = joint.log_softmax(dim=-2)
        density = joint[..., 0, :] - responsibility[..., 0, :]
        moments = (responsibility.exp() * fraction.unsqueeze(-2)) @ powers.T
        update = _from_moments(moments, regularisation)
        held = converged.unsqueeze(-1)
        mixture = Mixture(*(torch.where(held, a, b) for a, b in zip(mixture, update, strict=True)))
        likelihood = (density * fraction).sum(dim=-1)
        converged = converged | ((likelihood - previous).abs() < tolerance)
        previous = likelihood
        if converged.device.type == "cpu" and bool(converged.all()):
            break
    order = mixture.mean.argsort(dim=-1, stable=True)
    return Mixture(*(part.gather(-1, order) for part in mixture))


def extreme_start(counts: Tensor, centres: Tensor, components: int, variance: float = 1.0) -> Mixture:
    """The released start of EM: means at both ends (2 components) and at the median (3), equal weights.

    The released variance of 1 is wide for values in 0..1: EM then starts from nearly equal responsibilities
    and takes hundreds of iterations to leave them.
    """
    fraction = _fractions(counts)
    last = fraction.shape[-1] - 1
    occupied = (fraction > 0).double()
    lowest = occupied.argmax(dim=-1)
    highest = last - occupied.flip(-1).argmax(dim=-1)
    median = (_running_sum(fraction) < 0.5).sum(dim=-1).clamp(max=last)
    bins = [lowest, median, highest] if components == 3 else [lowest, highest]
    mean = centres.double()[torch.stack(bins, dim=-1)]
    return Mixture(torch.full_like(mean, 1 / components), mean, torch.full_like(mean, variance))


def component_borders(counts: Tensor, centres: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Where the lowest component ends and the highest begins, `[...]` float64, and whether both exist, bool.

    A value belongs to its most likely component. The lowest ends with the largest counted value that belongs
    to it, but before the first bin above its mean that another one owns: a wide component may own values
    beyond a narrow one, too. The beginning of the highest mirrors this. Both are edges of a bin, so that a
    value from the border on is in the upper part. Where one does not exist the numbers mean nothing.
    """
    x = centres.double()
    half = (x[1] - x[0]) / 2
    owner = _log_joint(mixture, _powers(centres)).argmax(dim=-2)
    lowest, highest = owner == 0, owner == mixture.mean.shape[-1] - 1
    ceiling = torch.where(lowest | (x <= mixture.mean[..., :1]), math.inf, x).amin(dim=-1, keepdim=True)
    floor = torch.where(highest | (x >= mixture.mean[..., -1:]), -math.inf, x).amax(dim=-1, keepdim=True)
    there = counts > 0
    end = torch.where(there & lowest & (x < ceiling), x + half, -math.inf).amax(dim=-1)
    begin = torch.where(there & highest & (x > floor), x - half, math.inf).amin(dim=-1)
    return end, begin, torch.isfinite(end) & torch.isfinite(begin)


def _parts_of_cuts(counts: Tensor, centres: Tensor) -> Tensor:
    """Moments `[..., N - 1, 2, 3]` of both parts of each cut."""
    below = _running_sum(_fractions(counts).unsqueeze(-2) * _powers(centres)).movedim(-1, -2)
    return torch.stack([below, below[..., -1:, :] - below], dim=-2)[..., :-1, :, :]


def _parts_of_cut(moments: Tensor, cut: Tensor) -> Mixture:
    index = cut[..., None, None, None].expand(*cut.shape, 1, 2, 3)
    return _from_moments(moments.gather(-3, index).squeeze(-3), regularisation=1e-6)


def split_likelihoods(
    counts: Tensor, centres: Tensor, smallest: float = SMALLEST_PART, regularisation: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Log-likelihood `[..., N - 1]` of each cut in two Gaussians, and their moments `[..., N - 1, 2, 3]`.

    The mean log-likelihood of the hard assignment is `sum_i w_i (log w_i - log s_i - 1/2)` plus a constant,
    with the parts' weights and standard deviations (Kittler and Illingworth's minimum error criterion with
    the sign turned); -inf where a part's fraction is not above `smallest`.
    """
    moments = _parts_of_cuts(counts, centres)
    fraction = moments[..., 0]
    parts = _from_moments(moments, regularisation)
    likelihood = (fraction * (parts.weight.log() - 0.5 * parts.variance.log() - 0.5)).sum(dim=-1)
    allowed = (fraction > max(smallest, 1e-9)).all(dim=-1)
    return likelihood.masked_fill(~allowed, -math.inf), moments


def best_split(counts: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Mixture]:
    """Most likely cut: last bin of the lower part `[...]`, whether one is allowed `[...]`, and both parts."""
    likelihood, moments = split_likelihoods(counts, centres)
    value, cut = likelihood.max(dim=-1)
    return cut, torch.isfinite(value), _parts_of_cut(moments, cut)


def two_means_start(counts: Tensor, centres: Tensor) -> Mixture:
    """The two clusters of 2-means, with which scikit-learn starts EM unless told otherwise.

    In one dimension they are the parts of a cut; the squares within both are least where those between them
    are largest (Otsu's criterion).
    """
    moments = _parts_of_cuts(counts, centres)
    between = (moments[..., 1].square() / moments[..., 0].clamp(min=TINY)).sum(dim=-1)
    return _parts_of_cut(moments, between.argmax(dim=-1))
