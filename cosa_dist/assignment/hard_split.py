"""The most likely cut of a histogram into two Gaussian parts.

Every cut is judged at once from running sums, so this costs no more than one pass over the bins. The best
cut is a threshold of its own (`split_likelihood`) and the place from which EM converges fast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cosa_dist.assignment.mixture import Mixture, from_moments, powers_of, shares

SMALLEST_PART = 0.02
"""A part with a smaller share is no hill: a narrow spike would otherwise have a boundless likelihood."""


def split_likelihoods(
    counts: Tensor, centres: Tensor, smallest: float = SMALLEST_PART, regularisation: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Judge every cut; weights, means and variances are estimated anew for each (METHOD: split_likelihood).

    The mean log-likelihood of the hard assignment is `sum_i w_i (log w_i - log s_i - 1/2)` plus a constant,
    with the parts' weights `w_i` and standard deviations `s_i` (Kittler and Illingworth's minimum error
    criterion with the sign turned).

    Args:
        counts: `[..., N]` histograms.
        centres: `[N]` centres of the bins.
        smallest: Smallest share of a part.
        regularisation: Added to both variances.

    Returns:
        Log-likelihoods `[..., N - 1]` of the cuts after bins 0 to N - 2, -inf where a part is too small,
        and the parts' moments `[..., N - 1, 2, 3]`.
    """
    below = (shares(counts).unsqueeze(-2) * powers_of(centres)).cumsum(dim=-1).movedim(-1, -2)
    moments = torch.stack([below, below[..., -1:, :] - below], dim=-2)[..., :-1, :, :]
    share = moments[..., 0]
    parts = from_moments(moments, regularisation)
    likelihood = (share * (parts.weight.log() - 0.5 * parts.variance.log() - 0.5)).sum(dim=-1)
    allowed = (share > max(smallest, 1e-9)).all(dim=-1)
    return likelihood.masked_fill(~allowed, -math.inf), moments


def best_split(counts: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Mixture]:
    """Find the most likely cut.

    Args:
        counts: `[..., N]` histograms.
        centres: `[N]` centres of the bins.

    Returns:
        The last bin of the lower part `[...]`, whether any cut is allowed `[...]`, and the two parts as a
        mixture.
    """
    likelihood, moments = split_likelihoods(counts, centres)
    value, cut = likelihood.max(dim=-1)
    index = cut[..., None, None, None].expand(*cut.shape, 1, 2, 3)
    parts = from_moments(moments.gather(-3, index).squeeze(-3), regularisation=1e-6)
    return cut, torch.isfinite(value), parts
