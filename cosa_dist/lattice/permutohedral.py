"""Gaussian and bilateral filtering on the permutohedral lattice.

Splat the values onto the vertices around each point, blur along the d + 1 lattice axes with (1/2, 1, 1/2),
slice back with the same weights and the factor 1 / (1 + 2^-d) (Adams, Baek and Davis, "Fast High-Dimensional
Filtering Using the Permutohedral Lattice", 2010, in the form of the released code). The filter is linear and
**not normalised**: in five dimensions a constant image comes out as about 0.52 times the exact sum of
Gaussians, a gain that the loss weights of the method take into account. Divide by the filtered constant 1
where a mean is wanted.

The lattice lives in the hyperplane of d + 1 coordinates that sum to zero; a vertex has integer coordinates of
one remainder modulo d + 1, and every simplex one vertex of each remainder. Vertices are found by sorting
integer keys, and each pass is a weighted sum of gathered rows (`embedding_bag`): no loop over points, no
compiled extension and no atomic addition, so the result is the same on every call, on GPUs too. There the
host waits once for each lattice, for its number of vertices. Coordinates are `[d + 1, P]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_KEY = 2**62
_LARGEST_INDEX = 2**31 - 1
_FARTHEST = 1e5  # beyond, float32 has no digits left for the place inside a simplex
_LONGEST_BAG = 256  # rows that a GPU sums one after the other

Spans = tuple[tuple[float, float], ...]
"""Least and largest value of each dimension of the features."""


class Simplices(NamedTuple):
    """The enclosing simplex of each of P points, `[d + 1, P]` each."""

    origin: Tensor  # float32 of whole numbers, the simplex's vertex of remainder 0
    rank: Tensor  # int64, each coordinate's place in the descending order of the offsets
    weights: Tensor  # float32 barycentric weight of the vertex of remainder 0..d; columns sum to 1


def elevate(features: Tensor) -> Tensor:
    """Map points `[P, d]` (float32, in standard deviations) into the hyperplane, `[d + 1, P]` (Adams et al.).

    The basis is orthogonal, of length sqrt(2/3) (d + 1), so that splat, blur and slice together have the
    variance 1 in feature units.
    """
    columns = _basis(features.shape[1], features.device).unbind(1)
    # Sums of products instead of a matrix product: TF32 would round the coordinates on GPUs.
    elevated = columns[-1][:, None] * features[:, -1]
    for axis in reversed(range(features.shape[1] - 1)):
        elevated = elevated + columns[axis][:, None] * features[:, axis]
    return elevated


@lru_cache(maxsize=16)
def _basis(dimensions: int, device: torch.device) -> Tensor:
    """The map into the hyperplane, `[d + 1, d]` float32; kept, as its copy to a GPU makes the host wait."""
    return torch.tensor(_basis_columns(dimensions), dtype=torch.float64).t().float().contiguous().to(device)


def _basis_columns(dimensions: int) -> list[list[float]]:
    """The basis vectors of the hyperplane, d lists of d + 1 numbers."""
    columns = []
    for axis in range(dimensions):
        scale = (dimensions + 1) * math.sqrt(2 / 3) / math.sqrt((axis + 1) * (axis + 2))
        columns.append([scale] * (axis + 1) + [-(axis + 1) * scale] + [0.0] * (dimensions - 1 - axis))
    return columns


def enclosing_simplices(features: Tensor) -> Simplices:
    """Find the simplex around each point `[P, d]` and the point's barycentric weights in it."""
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


@dataclass(frozen=True)
class PermutohedralLattice:
    """The lattice of B separate sets of N points in d dimensions, with M occupied vertices in all."""

    shape: tuple[int, int, int]  # (B, N, d)
    splat_points: Tensor  # `[B * N * (d + 1)]` int32, points in the order of their vertices
    splat_weights: Tensor  # `[B * N * (d + 1)]` float32, the weights that belong to them
    splat_offsets: Tensor
    """`[R + 1]` int32, where each run of points starts; a vertex has one run, or several of the longest bag's
    length. The last run is empty, so that vertex M, which stands for all missing ones, has the value 0"""
    vertex_offsets: Tensor | None
    """`[M + 1]` int32, each vertex's first run; None where every vertex has one"""
    slice_vertices: Tensor  # `[B * N, d + 1]` int32, the vertices around each point
    slice_weights: Tensor  # `[B * N, d + 1]` float32, barycentric weights times the slice factor
    blur_vertices: Tensor  # `[d + 1, M + 1, 3]` int32, per axis the vertex before, itself, the vertex after

    @classmethod
    @torch.no_grad()
    def build(
        cls, features: Tensor, spans: Spans | None = None, longest_bag: int | None = None
    ) -> PermutohedralLattice:
        """Build the lattice of points `[B, N, d]` in standard deviations (taken as float32).

        Features that are known to be finite and within `spans` need not be looked at, for which the host
        would wait for a GPU. There bags have at most 256 points (or `longest_bag`; a CPU sums longer ones
        just as fast).

        ValueError where the shape is wrong or empty, or values are not finite or too far apart.
        """
        if features.dim() != 3 or 0 in features.shape:
            raise ValueError(f"lattice features must be [B, N, d] and not empty, not {list(features.shape)}")
        batch, points, dimensions = features.shape
        if batch * points * (dimensions + 1) > _LARGEST_INDEX:
            raise ValueError(f"{batch} x {points} points are too many; filter fewer images at once")
        if spans is None and not bool(features.abs().max() < _FARTHEST):
            raise ValueError(
                "lattice features must be finite and within 100,000 standard deviations of 0; "
                "check the image's values and the standard deviations"
            )
        longest = longest_bag or (_LONGEST_BAG if features.is_cuda else _LARGEST_INDEX)
        with torch.autocast(features.device.type, enabled=False):
            simplices = enclosing_simplices(features.reshape(-1, dimensions).float())
            keys, strides = _vertex_keys(simplices, batch, spans)
        ordered, order = keys.flatten().sort(stable=True)
        vertex_of, starts, runs = _runs(ordered, longest)
        vertex = torch.empty_like(vertex_of).scatter_(0, order, vertex_of)
        return cls(
            shape=(batch, points, dimensions),
            splat_points=(order % (batch * points)).int(),
            splat_weights=simplices.weights.flatten().index_select(0, order),
            splat_offsets=F.pad(runs.int(), (0, 1), value=len(order)),
            vertex_offsets=None if starts is runs else F.pad(_run_of(starts, runs), (0, 1), value=len(runs)),
            slice_vertices=vertex.view(dimensions + 1, -1).t().contiguous(),
            slice_weights=simplices.weights.t().contiguous() / (1 + 2.0**-dimensions),
            blur_vertices=_neighbours(ordered[starts], strides),
        )

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """Filter values `[B, N, K]` (taken as float32) at the points, not normalised and without gradient."""
        batch, points, _ = self.shape
        if values.dim() != 3 or values.shape[:2] != (batch, points):
            raise ValueError(
                f"values must be [{batch}, {points}, K] as the lattice is, not {list(values.shape)}"
            )
        flat, weights = values.reshape(batch * points, -1).float(), self.splat_weights
        vertices = F.embedding_bag(
            self.splat_points, flat, self.splat_offsets, mode="sum", per_sample_weights=weights
        )
        if self.vertex_offsets is not None:
            runs = torch.arange(len(vertices), dtype=torch.int32, device=vertices.device)
            vertices = F.embedding_bag(runs, vertices, self.vertex_offsets, mode="sum")
        blur = vertices.new_full((len(vertices), 3), 0.5)
        blur[:, 1] = 1.0
        for rows in self.blur_vertices:
            vertices = F.embedding_bag(rows, vertices, mode="sum", per_sample_weights=blur)
        weights = self.slice_weights
        sliced = F.embedding_bag(self.slice_vertices, vertices, mode="sum", per_sample_weights=weights)
        return sliced.view(values.shape)


def _runs(ordered: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The runs of equal keys (ascending `[P]`), at most `longest` each.

    Returns the vertex of each key `[P]` int32, the places where vertices start `[M]` and those where runs
    start `[R]`, the same tensor if no vertex has two.
    """
    starts = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=starts[1:])
    vertex_of = starts.cumsum(0, dtype=torch.int32) - 1
    if longest >= len(ordered):
        begins = starts.nonzero().squeeze(1)
        return vertex_of, begins, begins
    places = torch.arange(len(ordered), device=ordered.device)
    since = places - places.masked_fill(~starts, 0).cummax(0).values
    cuts = since % longest == 0
    # Both numbers in one wait; `nonzero` would wait for each.
    vertices, runs = torch.stack((starts.sum(), cuts.sum())).tolist()
    begins = _places(places, starts, vertex_of, vertices)
    if vertices == runs:
        return vertex_of, begins, begins
    return vertex_of, begins, _places(places, cuts, cuts.cumsum(0, dtype=torch.int32) - 1, runs)


def _places(places: Tensor, chosen: Tensor, number: Tensor, count: int) -> Tensor:
    """The `count` places where `chosen` is set: `nonzero`, but without asking the device for their number."""
    # All others are written to one place more, which nobody reads.
    target = torch.where(chosen, number, count).long()
    return torch.empty(count + 1, dtype=torch.int64, device=places.device).scatter_(0, target, places)[:-1]


def _run_of(starts: Tensor, runs: Tensor) -> Tensor:
    """Number of the run that starts where each vertex starts, int32."""
    return torch.searchsorted(runs, starts, out_int32=True)


def _origin_spans(spans: Spans) -> list[tuple[float, float]]:
    """Bounds of the first d coordinates of the origins of simplices around points within the spans."""
    size, bounds = len(spans) + 1, []
    for coordinate in list(zip(*_basis_columns(len(spans)), strict=True))[:-1]:
        ends = [sorted((c * low, c * high)) for c, (low, high) in zip(coordinate, spans, strict=True)]
        low, high = (sum(each) / size for each in zip(*ends, strict=True))
        # Whole multiples of d + 1, at most one and a half of them from the point; the rest is for rounding.
        bounds.append((math.floor(low) * size - 2.0 * size, math.ceil(high) * size + 2.0 * size))
    return bounds


def _vertex_keys(simplices: Simplices, batch: int, spans: Spans | None) -> tuple[Tensor, list[int]]:
    """Pack each vertex's set and first d coordinates (the last follows from them) into one int64.

    Returns the keys `[d + 1, B * N]` of the vertices of remainder 0..d and the d + 1 strides (the last 0): a
    step in coordinate i adds `strides[i]`. The ranges leave room for the blur's neighbours, so that no
    neighbour's key can be that of another vertex. They follow from the features' `spans`, or from the
    coordinates themselves where there are none or where these leave too wide a range.
    """
    size, points = simplices.origin.shape
    bounds = _origin_spans(spans) if spans is not None else []
    if not bounds or math.prod(high - low + 4 * size for low, high in bounds) * batch > _LARGEST_KEY:
        measured = simplices.origin[:-1].aminmax(dim=1)
        bounds = torch.stack(measured, dim=1).tolist()
    strides, total = [], 1
    for smallest, largest in bounds:
        strides.append(total)
        total *= int(largest - smallest) + 4 * size
    if total * batch > _LARGEST_KEY:
        raise ValueError(
            "lattice features span too many standard deviations in too many dimensions; "
            "use larger standard deviations"
        )
    strides.append(0)
    # Filled on the device: a list that is copied to a GPU makes the host wait.
    stride = _on_device(strides, torch.int64, simplices.origin.device)
    margin = _on_device([low - 2 * size for low, _ in bounds] + [0.0], torch.float32, simplices.origin.device)
    keys = ((simplices.origin - margin[:, None]).long() * stride[:, None]).sum(0)
    keys += torch.arange(batch, device=keys.device).repeat_interleave(points // batch) * total
    # The vertex of remainder k adds k everywhere and takes d + 1 off the k coordinates ranked last.
    ordered = torch.empty_like(simplices.rank)
    ordered.scatter_(0, simplices.rank, stride[:, None].expand_as(simplices.rank))
    steps = sum(strides) - size * ordered[1:].flip(0)
    return torch.cat((keys[None], steps)).cumsum(0), strides


def _on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def _neighbours(keys: Tensor, strides: list[int]) -> Tensor:
    """Both neighbours of each vertex (ascending keys `[M]`) along each axis, `[d + 1, M + 1, 3]`; M: none.

    One step along axis j adds 1 to every coordinate and takes d + 1 off coordinate j.
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
        before[-1:] = count  # a slice: a number at a single place would be copied from the host
        vertices[axis] = torch.stack((before, own, F.pad(after, (0, 1), value=count)), dim=1)
    return vertices


def position_features(height: int, width: int, sigma_xy: float, device: torch.device) -> Tensor:
    """Pixel positions (x, y) in units of `sigma_xy`, `[height * width, 2]` float32, row by row."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2) / sigma_xy


def position_spans(height: int, width: int, sigma_xy: float) -> Spans:
    """The spans of `position_features`."""
    return (0.0, (width - 1) / sigma_xy), (0.0, (height - 1) / sigma_xy)


def bilateral_features(images: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Features (x, y, red, green, blue) of `[B, 3, H, W]` colours in 0..255, `[B, H * W, 5]` float32."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], not {list(images.shape)}")
    height, width = images.shape[2:]
    position = position_features(height, width, sigma_xy, images.device)
    colour = images.detach().float().flatten(2).transpose(1, 2) / sigma_rgb
    return torch.cat((position.expand(len(images), -1, -1), colour), dim=-1)


def bilateral_spans(images: Tensor, sigma_rgb: float, sigma_xy: float) -> Spans | None:
    """The spans of `bilateral_features` where the images' type says them (uint8: 0..255), else None."""
    if images.dtype != torch.uint8:
        return None
    height, width = images.shape[2:]
    return (*position_spans(height, width, sigma_xy), *[(0.0, 255 / sigma_rgb)] * 3)


def bilateral_filter(images: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Filter maps `[B, K, H, W]` bilaterally by `[B, 3, H, W]` colours in 0..255 (released code).

    Not normalised (about 0.52 times the exact sum, see `permutohedral`), float32, without gradient.
    """
    if values.dim() != 4 or values.shape[0] != len(images) or values.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"values {list(values.shape)} must have batch and size of images {list(images.shape)}"
        )
    spans = bilateral_spans(images, sigma_rgb, sigma_xy)
    lattice = PermutohedralLattice.build(bilateral_features(images, sigma_rgb, sigma_xy), spans)
    filtered = lattice.filter(values.detach().flatten(2).transpose(1, 2))
    return filtered.transpose(1, 2).reshape(values.shape)
