"""One-dimensional Gaussian mixtures on histograms, fitted on the device.

Activations of background and of foreground pixels form hills in the histogram of CAM values; a mixture
fitted by expectation-maximisation (EM) tells where one hill ends. Every function takes histograms
`[..., N]`, so that several CAMs are fitted in one go, and works in float64 on a few hundred bins. On a GPU
EM runs its largest number of iterations without ever waiting for the device: a fit that has converged is
held by a mask. On the CPU, where looking costs nothing, it stops early with the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-12
"""Mass that keeps an empty component finite."""


@dataclass(frozen=True)
class EmSettings:
    """When EM stops, and what keeps its variances positive."""

    max_iterations: int = 1000
    tolerance: float = 1e-8
    """Converged where the mean log-likelihood changes by less than this."""
    regularisation: float = 1e-6
    """Added to every variance."""


RELEASED = EmSettings(max_iterations=100, tolerance=1e-3)
"""The released code's settings; they stop long before convergence."""


class Mixture(NamedTuple):
    """K Gaussians for each histogram, `[..., K]` each, float64."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def shares(counts: Tensor) -> Tensor:
    """Turn counts `[..., N]` into shares that sum to 1 (all 0 for an empty histogram), float64."""
    counts = counts.double()
    return counts / counts.sum(dim=-1, keepdim=True).clamp(min=1.0)


def powers_of(centres: Tensor) -> Tensor:
    """1, x and x^2 of the bin centres `[N]`, as `[3, N]` float64."""
    x = centres.double()
    return torch.stack([torch.ones_like(x), x, x.square()])


def from_moments(moments: Tensor, regularisation: float) -> Mixture:
    """Mixture of parts with the moments `[..., K, 3]`: their share, and their sums of x and of x^2."""
    weight, first, second = moments.unbind(dim=-1)
    weight = weight + TINY
    mean = first / weight
    variance = (second / weight - mean.square()).clamp(min=0.0) + regularisation
    return Mixture(weight, mean, variance)


def log_joint(mixture: Mixture, powers: Tensor) -> Tensor:
    """Logarithm of weight times density of each component at each bin, `[..., K, N]`.

    Args:
        mixture: K components.
        powers: `[3, N]` of `powers_of`.
    """
    weight, mean, variance = mixture
    slope = mean / variance
    constant = weight.log() - 0.5 * ((2 * math.pi * variance).log() + mean * slope)
    return torch.stack([constant, slope, -0.5 / variance], dim=-1) @ powers


@torch.no_grad()
def fit_mixture(
    counts: Tensor, centres: Tensor, start: Mixture, settings: EmSettings = EmSettings()
) -> Mixture:
    """Fit a Gaussian mixture by EM (the textbook's; it stops as scikit-learn's does).

    Args:
        counts: `[..., N]` histograms.
        centres: `[N]` centres of the bins; every value of a bin counts as its centre.
        start: Components to start from, `[..., K]`.
        settings: When to stop.

    Returns:
        The components ordered by their means. A histogram without counts gives finite nonsense.
    """
    powers, share = powers_of(centres), shares(counts)
    mixture = start
    previous = torch.full_like(share[..., 0], -math.inf)
    converged = torch.zeros_like(previous, dtype=torch.bool)
    for _ in range(settings.max_iterations):
        joint = log_joint(mixture, powers)
        responsibility = joint.log_softmax(dim=-2)
        density = joint[..., 0, :] - responsibility[..., 0, :]
        moments = (responsibility.exp() * share.unsqueeze(-2)) @ powers.T
        step = from_moments(moments, settings.regularisation)
        held = converged.unsqueeze(-1)
        mixture = Mixture(*(torch.where(held, a, b) for a, b in zip(mixture, step, strict=True)))
        likelihood = (density * share).sum(dim=-1)
        converged = converged | ((likelihood - previous).abs() < settings.tolerance)
        previous = likelihood
        if converged.device.type == "cpu" and bool(converged.all()):
            break
    order = mixture.mean.argsort(dim=-1, stable=True)
    return Mixture(*(part.gather(-1, order) for part in mixture))


def extreme_start(counts: Tensor, centres: Tensor, components: int, variance: float = 1.0) -> Mixture:
    """Start of the released code: means at the ends and at the median, equal weights and variances.

    Args:
        counts: `[..., N]` histograms.
        centres: `[N]` centres of the bins.
        components: 2 (the ends) or 3.
        variance: Of every component; the released 1 is wide for values in 0..1, so that EM starts from
            nearly equal responsibilities and takes hundreds of iterations to leave them.

    Raises:
        ValueError: If there are neither 2 nor 3 components.
    """
    if components not in (2, 3):
        raise ValueError(f"the released start knows 2 or 3 components, got {components}")
    share = shares(counts)
    last = share.shape[-1] - 1
    some = (share > 0).double()
    lowest = some.argmax(dim=-1)
    highest = last - some.flip(-1).argmax(dim=-1)
    median = (share.cumsum(dim=-1) < 0.5).sum(dim=-1).clamp(max=last)
    bins = [lowest, median, highest] if components == 3 else [lowest, highest]
    mean = centres.double()[torch.stack(bins, dim=-1)]
    return Mixture(torch.full_like(mean, 1 / components), mean, torch.full_like(mean, variance))


def component_borders(counts: Tensor, centres: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Where the lowest component ends and the highest begins.

    A value belongs to the component that most likely made it. The lowest ends with the largest value that
    belongs to it, but before the first bin above its mean that another one owns: a wide component may own
    values beyond a narrow one, too. The beginning of the highest mirrors this. Both are edges of a bin, so
    that a value from the border on is in the upper part.

    Args:
        counts: `[..., N]` histograms.
        centres: `[N]` centres of equally wide bins.
        mixture: `[..., K]` components ordered by their means.

    Returns:
        End of the lowest and beginning of the highest component `[...]`, float64, and whether both are
        there `[...]`; where not, the numbers mean nothing.
    """
    x = centres.double()
    half = (x[1] - x[0]) / 2
    owner = log_joint(mixture, powers_of(centres)).argmax(dim=-2)
    lowest, highest = owner == 0, owner == mixture.mean.shape[-1] - 1
    ceiling = torch.where(lowest | (x <= mixture.mean[..., :1]), math.inf, x).amin(dim=-1, keepdim=True)
    floor = torch.where(highest | (x >= mixture.mean[..., -1:]), -math.inf, x).amax(dim=-1, keepdim=True)
    there = counts > 0
    end = torch.where(there & lowest & (x < ceiling), x + half, -math.inf).amax(dim=-1)
    begin = torch.where(there & highest & (x > floor), x - half, math.inf).amin(dim=-1)
    return end, begin, torch.isfinite(end) & torch.isfinite(begin)
