"""The enclosing simplex and its weights, against what the lattice's definition demands."""

import pytest
import torch

from cosa_dist.lattice.simplex import elevate, enclosing_simplices


def points(dimensions, count=500):
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(count, dimensions, generator=generator) * 3


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_elevation_keeps_lengths_and_angles_up_to_one_factor(dimensions):
    features = points(dimensions, 40)
    elevated = elevate(features)
    assert elevated.sum(0).abs().max() < 1e-4
    factor = (dimensions + 1) * (2 / 3) ** 0.5
    gram = elevated.t() @ elevated
    torch.testing.assert_close(gram, features @ features.t() * factor**2, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_point_is_the_weighted_mean_of_its_vertices(dimensions):
    features = points(dimensions)
    size = dimensions + 1
    origin, rank, weights = enclosing_simplices(features)
    assert torch.equal(origin.remainder(size), torch.zeros_like(origin))
    assert torch.equal(origin.sum(0), torch.zeros(len(features)))
    expected_ranks = torch.arange(size)[:, None].expand_as(rank)
    assert torch.equal(rank.sort(0).values, expected_ranks)
    assert weights.min() > -1e-5
    torch.testing.assert_close(weights.sum(0), torch.ones(len(features)))
    mean = torch.zeros_like(origin)
    for remainder in range(size):
        vertex = origin + remainder - size * (rank > dimensions - remainder)
        assert torch.equal(vertex.sum(0), torch.zeros(len(features)))
        mean += weights[remainder] * vertex
    torch.testing.assert_close(mean, elevate(features), rtol=1e-4, atol=1e-4)


def test_hand_computed_line():
    # In one dimension the vertices are at whole numbers of sqrt(3)/2.
    unit = 3**0.5 / 2
    _, _, weights = enclosing_simplices(torch.tensor([[0.25], [-0.25], [1.6]]) * unit)
    expected = torch.tensor([[0.75, 0.75, 0.6], [0.25, 0.25, 0.4]])
    torch.testing.assert_close(weights, expected)
