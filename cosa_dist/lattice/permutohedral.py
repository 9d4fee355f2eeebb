"""Gaussian filtering of values at scattered points on the permutohedral lattice.

Splat the values onto the vertices around each point, blur along the d + 1 lattice axes with (1/2,
1, 1/2), slice back with the same weights and the factor 1 / (1 + 2^-d) (Adams et al. 2010, in the
form of the released code). The filter is linear and **not normalised**: with five dimensions a
constant image comes out as about 0.52 times the exact sum of Gaussians, a gain that the loss
weights of the method take into account. Divide by the filtered constant 1 where a mean is wanted.

The vertices are found by sorting integer keys, one lattice for a whole batch, and each pass is a
weighted sum of gathered rows (`embedding_bag`), so that there is no loop over points, no compiled
extension and no atomic addition: the result is the same on every call, on GPUs too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.lattice.simplex import Simplices, enclosing_simplices

_LARGEST_KEY = 2**62
_LARGEST_INDEX = 2**31 - 1
_FARTHEST = 1e5  # beyond, float32 has no digits left for the place inside a simplex


@dataclass(frozen=True)
class PermutohedralLattice:
    """The lattice of B sets of N points in d dimensions, with M occupied vertices in all.

    Sets (images) do not see each other. Make one with `build`; it may filter any number of times.

    Attributes:
        shape: (B, N, d).
        splat_points: `[B * N * (d + 1)]` int32, points in the order of their vertices.
        splat_weights: `[B * N * (d + 1)]` float32, the weights that belong to them.
        splat_offsets: `[M + 1]` int32, where each vertex's run of points starts; the last run is
            empty, so that vertex M, which stands for all those that are missing, has the value 0.
        slice_vertices: `[B * N, d + 1]` int32, the vertices around each point.
        slice_weights: `[B * N, d + 1]` float32, barycentric weights, with the slice factor.
        blur_vertices: `[d + 1, M + 1, 3]` int32, per axis the vertex before, itself, the vertex
            after.
    """

    shape: tuple[int, int, int]
    splat_points: Tensor
    splat_weights: Tensor
    splat_offsets: Tensor
    slice_vertices: Tensor
    slice_weights: Tensor
    blur_vertices: Tensor

    @classmethod
    @torch.no_grad()
    def build(cls, features: Tensor) -> PermutohedralLattice:
        """Build the lattice of the given points.

        Args:
            features: `[B, N, d]`, positions in units of the wanted standard deviations; taken as
                float32.

        Returns:
            The lattice, on the device of `features`.

        Raises:
            ValueError: Where the shape is wrong or empty, or values are not finite or too far
                apart.
        """
        if features.dim() != 3 or 0 in features.shape:
            raise ValueError(f"lattice features must be [B, N, d] and not empty, not {list(features.shape)}")
        batch, points, dimensions = features.shape
        if batch * points * (dimensions + 1) > _LARGEST_INDEX:
            raise ValueError(f"{batch} x {points} points are too many; filter fewer images at once")
        if not bool(features.abs().max() < _FARTHEST):
            raise ValueError(
                "lattice features must be finite and within 100,000 standard deviations of 0; "
                "check the image's values and the standard deviations"
            )
        with torch.autocast(features.device.type, enabled=False):
            simplices = enclosing_simplices(features.reshape(-1, dimensions).float())
            keys, strides = _vertex_keys(simplices, batch)
        ordered, order = keys.flatten().sort(stable=True)
        starts = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=starts[1:])
        offsets = starts.nonzero().squeeze(1)
        vertex = torch.empty(len(order), dtype=torch.int32, device=order.device)
        vertex.scatter_(0, order, starts.cumsum(0, dtype=torch.int32) - 1)
        return cls(
            shape=(batch, points, dimensions),
            splat_points=(order % (batch * points)).int(),
            splat_weights=simplices.weights.flatten().index_select(0, order),
            splat_offsets=F.pad(offsets.int(), (0, 1), value=len(order)),
            slice_vertices=vertex.view(dimensions + 1, -1).t().contiguous(),
            slice_weights=simplices.weights.t().contiguous() / (1 + 2.0**-dimensions),
            blur_vertices=_neighbours(ordered[offsets], strides),
        )

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """Filter values given at the points; no gradient flows through.

        Args:
            values: `[B, N, K]`, taken as float32; all K channels share the lattice.

        Returns:
            `[B, N, K]` float32, not normalised.

        Raises:
            ValueError: Where B or N is not the lattice's.
        """
        batch, points, _ = self.shape
        if values.dim() != 3 or values.shape[:2] != (batch, points):
            raise ValueError(
                f"values must be [{batch}, {points}, K] as the lattice is, not {list(values.shape)}"
            )
        flat = values.reshape(batch * points, -1).float()
        vertices = F.embedding_bag(
            self.splat_points,
            flat,
            self.splat_offsets,
            mode="sum",
            per_sample_weights=self.splat_weights,
        )
        blur = vertices.new_full((len(vertices), 3), 0.5)
        blur[:, 1] = 1.0
        for neighbours in self.blur_vertices:
            vertices = _weighted_rows(neighbours, blur, vertices)
        return _weighted_rows(self.slice_vertices, self.slice_weights, vertices).view(values.shape)


def _weighted_rows(rows: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Sum of `table[rows]` with weights: `[R, n]`, `[R, n]`, `[M, K]` to `[R, K]`."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _vertex_keys(simplices: Simplices, batch: int) -> tuple[Tensor, list[int]]:
    """Pack each vertex's set and first d coordinates (the last follows from them) into one number.

    A step in coordinate i adds `strides[i]` to the key. The ranges leave room for the blur's
    neighbours, so that no neighbour's key can be that of another vertex.

    Returns:
        `[d + 1, B * N]` int64 keys of the vertices of remainder 0..d, and the d + 1 strides (the
        last 0).
    """
    size, points = simplices.origin.shape
    low, high = simplices.origin[:-1].aminmax(dim=1)
    bounds = torch.stack((low, high)).tolist()
    strides, total = [], 1
    for smallest, largest in zip(*bounds, strict=True):
        strides.append(total)
        total *= int(largest - smallest) + 4 * size
    if total * batch > _LARGEST_KEY:
        raise ValueError(
            "lattice features span too many standard deviations in too many dimensions; "
            "use larger standard deviations"
        )
    strides.append(0)
    # Filled on the device: a list that is copied to a GPU makes the host wait.
    stride = torch.stack([torch.full((), value, device=low.device) for value in strides])
    margin = F.pad(low, (0, 1))[:, None] - 2 * size
    keys = ((simplices.origin - margin).long() * stride[:, None]).sum(0)
    keys += torch.arange(batch, device=keys.device).repeat_interleave(points // batch) * total
    # The vertex of remainder k adds k everywhere and takes d + 1 off the k coordinates ranked last.
    ordered = torch.empty_like(simplices.rank)
    ordered.scatter_(0, simplices.rank, stride[:, None].expand_as(simplices.rank))
    steps = sum(strides) - size * ordered[1:].flip(0)
    return torch.cat((keys[None], steps)).cumsum(0), strides


def _neighbours(keys: Tensor, strides: list[int]) -> Tensor:
    """Find both neighbours of every vertex along each lattice axis.

    One step along axis j adds 1 to every coordinate and takes d + 1 off coordinate j.

    Args:
        keys: `[M]` int64, ascending.
        strides: As from `_vertex_keys`.

    Returns:
        `[d + 1, M + 1, 3]` int32 vertices, where M stands for a missing one.
    """
    count = len(keys)
    sought = F.pad(keys, (0, 1), value=_LARGEST_KEY)
    own = torch.arange(count + 1, dtype=torch.int32, device=keys.device)
    vertices = own.new_empty(len(strides), count + 1, 3)
    for axis, stride in enumerate(strides):
        wanted = keys + (sum(strides) - len(strides) * stride)
        found = torch.searchsorted(sought, wanted, out_int32=True)
        after = torch.where(sought[found] == wanted, found, count)
        # The neighbour before is the inverse of the neighbour after, so it needs no second search.
        before = torch.full_like(own, count)
        before[after] = own[:-1]
        before[-1] = count
        vertices[axis] = torch.stack((before, own, F.pad(after, (0, 1), value=count)), dim=1)
    return vertices
