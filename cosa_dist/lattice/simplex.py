"""Where points lie in the permutohedral lattice: the enclosing simplex and the barycentric weights.

The lattice of dimension d lives in the hyperplane of d + 1 coordinates that sum to zero. Its
vertices have integer coordinates that all leave the same remainder modulo d + 1, and every simplex
has exactly one vertex of each remainder 0..d, so that a point is described by the nearest vertex of
remainder 0 and by the order of its offsets from there (Adams, Baek and Davis, "Fast
High-Dimensional Filtering Using the Permutohedral Lattice", 2010). Tensors are laid out coordinate
first, `[d + 1, P]`, which keeps every pass contiguous.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Simplices(NamedTuple):
    """The enclosing simplex of each of P points.

    Attributes:
        origin: `[d + 1, P]` float32 of whole numbers, the simplex's vertex of remainder 0.
        rank: `[d + 1, P]` int64, each coordinate's place in the descending order of the offsets.
        weights: `[d + 1, P]` float32, barycentric weight of the vertex of remainder 0..d; columns
            sum to 1.
    """

    origin: Tensor
    rank: Tensor
    weights: Tensor


def elevate(features: Tensor) -> Tensor:
    """Map points into the lattice's hyperplane (paper of Adams et al.).

    The basis is orthogonal, of length sqrt(2/3) (d + 1), so that splat, blur and slice together
    have the variance 1 in feature units.

    Args:
        features: `[P, d]` float32, already divided by the wanted standard deviations.

    Returns:
        `[d + 1, P]` float32 coordinates that sum to zero over the first axis.
    """
    dimensions = features.shape[1]
    columns = _basis(dimensions, features.device).unbind(1)
    # Sums of products instead of a matrix product: TF32 would round the coordinates on GPUs.
    elevated = columns[-1][:, None] * features[:, -1]
    for axis in reversed(range(dimensions - 1)):
        elevated = elevated + columns[axis][:, None] * features[:, axis]
    return elevated


@lru_cache(maxsize=16)
def _basis(dimensions: int, device: torch.device) -> Tensor:
    """The map into the hyperplane, `[d + 1, d]` float32; kept, as its copy to a GPU makes the host wait."""
    basis = torch.zeros(dimensions + 1, dimensions, dtype=torch.float64)
    for axis in range(dimensions):
        scale = (dimensions + 1) * math.sqrt(2 / 3) / math.sqrt((axis + 1) * (axis + 2))
        basis[: axis + 1, axis] = scale
        basis[axis + 1, axis] = -(axis + 1) * scale
    return basis.float().to(device)


def enclosing_simplices(features: Tensor) -> Simplices:
    """Find the simplex around each point and the point's barycentric weights in it.

    Args:
        features: `[P, d]` float32, in units of standard deviations.

    Returns:
        The simplices, on the device of `features`.
    """
    size = features.shape[1] + 1
    elevated = elevate(features)
    # ceil(x - 1/2): halves go down, as in the common implementations.
    quotient = (elevated / size - 0.5).ceil_()
    offset = elevated - quotient * size
    rank = _descending_rank(offset)
    # Rounding each coordinate by itself may leave the hyperplane; the ranks say which to correct.
    rank += quotient.sum(0).to(rank.dtype)
    shift = (rank < 0).to(rank.dtype) - (rank >= size).to(rank.dtype)
    rank += shift * size
    quotient += shift
    origin = quotient * size
    rank = rank.long()
    ordered = torch.empty_like(elevated).scatter_(0, rank, (elevated - origin) / size)
    # The descents of the ordered offsets; the last closes the sum to 1 and is the origin's weight.
    weights = -ordered.diff(dim=0, append=ordered[:1] - 1).flip(0)
    return Simplices(origin, rank, weights)


def _descending_rank(offset: Tensor) -> Tensor:
    """Place of each entry of `[d + 1, P]` in its column's descending order, int8; ties stay in order."""
    size = offset.shape[0]
    # Counting starts from the order as it stands and moves each pair that is the wrong way round.
    # Bytes, since the many small passes are bound by memory.
    rank = torch.arange(size, dtype=torch.int8, device=offset.device)[:, None].repeat(1, offset.shape[1])
    for first in range(size):
        for second in range(first + 1, size):
            smaller = (offset[first] < offset[second]).view(torch.int8)
            rank[first] += smaller
            rank[second] -= smaller
    return rank
