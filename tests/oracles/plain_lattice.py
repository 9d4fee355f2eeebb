"""Plain formulation of the permutohedral filter: one image, one plane at a time, a dictionary of vertices.

Adams, Baek and Davis (2010), step by step as in their paper and in the common implementations: elevate,
round to the nearest vertex of remainder 0, rank the offsets, splat, blur along each axis, slice. Written in
NumPy without any of this project's own lattice code, so that it serves as its oracle. One point differs from
the usual compiled code: every vertex that a neighbour lacks counts as zero and is not created.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class PlainLattice:
    """The lattice of one set of N points in d dimensions."""

    def __init__(self, features: Floats) -> None:
        """Place the points `[N, d]`, in units of standard deviations."""
        self.size = features.shape[1] + 1
        origin, rank, self.weights = _simplices(_elevated(features))
        keys = [tuple(key) for key in _vertices(origin, rank).reshape(-1, self.size).tolist()]
        self.place: dict[tuple[int, ...], int] = {}
        for key in keys:
            self.place.setdefault(key, len(self.place))
        self.vertex = np.array([self.place[key] for key in keys]).reshape(-1, self.size)
        self.neighbours = [self._neighbours(axis) for axis in range(self.size)]

    def _neighbours(self, axis: int) -> Integers:
        """Place of the vertices before and after each along an axis; the last place stands for none."""
        found = np.full((len(self.place), 2), len(self.place))
        for key, place in self.place.items():
            for side, sign in enumerate((-1, 1)):
                moved = [coordinate + sign for coordinate in key]
                moved[axis] -= sign * self.size
                found[place, side] = self.place.get(tuple(moved), len(self.place))
        return found

    def filter(self, values: Floats) -> Floats:
        """Splat, blur (1/2, 1, 1/2) and slice one plane of values `[N]`; not normalised."""
        vertices = np.zeros(len(self.place) + 1)
        np.add.at(vertices, self.vertex, self.weights * values[:, None])
        for neighbours in self.neighbours:
            blurred = vertices.copy()
            blurred[:-1] += 0.5 * vertices[neighbours].sum(1)
            vertices = blurred
        return (vertices[self.vertex] * self.weights).sum(1) / (1 + 2.0 ** -(self.size - 1))


def _elevated(features: Floats) -> Floats:
    """Points in the hyperplane of d + 1 coordinates that sum to zero, `[N, d + 1]`."""
    dimensions = features.shape[1]
    spread = (dimensions + 1) * np.sqrt(2 / 3)
    elevated = np.zeros((len(features), dimensions + 1))
    below = np.zeros(len(features))
    for axis in range(dimensions, 0, -1):
        scaled = features[:, axis - 1] * spread / np.sqrt(axis * (axis + 1))
        elevated[:, axis] = below - axis * scaled
        below = below + scaled
    elevated[:, 0] = below
    return elevated


def _simplices(elevated: Floats) -> tuple[Integers, Integers, Floats]:
    """Vertex of remainder 0 `[N, d + 1]`, rank of the coordinates, and barycentric weights, likewise."""
    size = elevated.shape[1]
    quotient = np.ceil(elevated / size - 0.5).astype(np.int64)
    offset = elevated - quotient * size
    # Two sorts: the place of each coordinate in the descending order of the offsets.
    rank = np.argsort(np.argsort(-offset, axis=1, kind="stable"), axis=1)
    rank += quotient.sum(1, keepdims=True)
    too_low, too_high = rank < 0, rank >= size
    rank = rank + size * too_low - size * too_high
    quotient = quotient + too_low - too_high
    weights = np.zeros((len(elevated), size + 1))
    place = np.arange(len(elevated))
    for axis in range(size):
        share = (elevated[:, axis] - quotient[:, axis] * size) / size
        np.add.at(weights, (place, size - 1 - rank[:, axis]), share)
        np.add.at(weights, (place, size - rank[:, axis]), -share)
    weights[:, 0] += 1 + weights[:, size]
    return quotient * size, rank, weights[:, :size]


def _vertices(origin: Integers, rank: Integers) -> Integers:
    """Coordinates of the vertices of remainder 0..d around each point, `[N, d + 1, d + 1]`."""
    size = origin.shape[1]
    remainders = np.arange(size)[None, :, None]
    return origin[:, None, :] + remainders - size * (rank[:, None, :] >= size - remainders)
