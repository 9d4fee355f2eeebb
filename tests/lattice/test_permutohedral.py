"""The lattice: simplices, hand-computed lines, exact Gaussian sums, properties of a linear map."""

import pytest
import torch

from cosa_dist.lattice.permutohedral import PermutohedralLattice, elevate, enclosing_simplices


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def operator(features):
    """The filter's matrix `[N, N]` for features `[N, d]`."""
    lattice = PermutohedralLattice.build(features[None])
    return lattice.filter(torch.eye(len(features))[None])[0]


def test_hand_computed_two_points_on_a_line():
    # Two vertices, points at 1/4 and 3/4 between; two blurs of [[1, 1/2], [1/2, 1]]; factor 2/3.
    unit = 3**0.5 / 2
    matrix = operator(torch.tensor([[0.25], [0.75]]) * unit)
    blurred = torch.tensor([[1.25, 1.0], [1.0, 1.25]])
    weights = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    torch.testing.assert_close(matrix, weights @ blurred @ weights.t() * 2 / 3)
    torch.testing.assert_close(matrix[0, 0], torch.tensor(2 / 3 * 1.15625))


def test_hand_computed_far_points_do_not_meet():
    # A simplex alone: its own two vertices only; the missing ones count as 0.
    matrix = operator(torch.tensor([[0.25 * 3**0.5 / 2], [50.0]]))
    torch.testing.assert_close(matrix[0, 0], torch.tensor(2 / 3 * 1.15625))
    assert matrix[0, 1] == 0
    assert matrix[1, 0] == 0


@pytest.mark.parametrize(
    ("dimensions", "spread", "tolerance"), [(1, 6.0, 0.04), (2, 4.0, 0.04), (5, 2.0, 0.04)]
)
def test_normalised_filter_is_near_the_exact_gaussian_mean(dimensions, spread, tolerance):
    features = random(1500, dimensions, seed=1) * spread
    values = (features[:, :1] * 1.3).sin() + random(1500, 1, seed=2)
    exact = (-torch.cdist(features, features).square() / 2).exp()
    expected = exact @ values / exact.sum(1, keepdim=True)
    lattice = PermutohedralLattice.build(features[None])
    ones = lattice.filter(torch.ones(1, 1500, 1))[0]
    error = (lattice.filter(values[None])[0] / ones - expected).abs()
    assert error.mean() < tolerance * (values.max() - values.min())


def test_gain_in_five_dimensions():
    features = random(3000, 5, seed=3) * 1.5
    exact = (-torch.cdist(features, features).square() / 2).exp().sum(1)
    ones = PermutohedralLattice.build(features[None]).filter(torch.ones(1, 3000, 1))[0, :, 0]
    assert 0.4 < (ones / exact).median() < 0.6


@pytest.mark.parametrize("dimensions", [2, 5])
def test_operator_is_linear_positive_and_nearly_symmetric(dimensions):
    features = random(200, dimensions, seed=4) * (5 - 0.7 * dimensions)
    matrix = operator(features)
    values = random(1, 200, 3, seed=5) - 0.5
    filtered = PermutohedralLattice.build(features[None]).filter(values)[0]
    torch.testing.assert_close(filtered, matrix @ values[0], rtol=1e-4, atol=1e-5)
    assert matrix.min() >= 0
    assert (matrix - matrix.t()).norm() / matrix.norm() < 0.1
    assert (matrix - torch.diag(matrix.diag())).norm() > 0.1


def test_batch_equals_single_images():
    features = random(3, 150, 5, seed=6) * 4
    features[1] = features[0]
    values = random(3, 150, 4, seed=7)
    together = PermutohedralLattice.build(features).filter(values)
    for index in range(3):
        one = slice(index, index + 1)
        alone = PermutohedralLattice.build(features[one]).filter(values[one])
        torch.testing.assert_close(together[one], alone)


def test_filter_again_is_the_same_and_half_precision_is_taken_as_float32():
    features, values = random(2, 100, 5, seed=8), random(2, 100, 3, seed=9).bfloat16()
    lattice = PermutohedralLattice.build(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = PermutohedralLattice.build(features).filter(values)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, lattice.filter(values.float()))


@pytest.mark.parametrize("dimensions", [2, 5])
def test_shift_by_a_lattice_vector_changes_nothing(dimensions):
    features, values = random(1, 300, dimensions, seed=10) * 3, random(1, 300, 2, seed=11)
    basis = elevate(torch.eye(dimensions))
    vector = torch.zeros(dimensions + 1)
    vector[0], vector[1] = 10 * (dimensions + 1), -10 * (dimensions + 1)
    shift = vector @ basis / (2 / 3 * (dimensions + 1) ** 2)
    assert shift.norm() > 10
    near = PermutohedralLattice.build(features).filter(values)
    far = PermutohedralLattice.build(features + shift).filter(values)
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(5, 2), "must be"),
        (torch.zeros(1, 0, 2), "not empty"),
        (torch.full((1, 4, 2), float("nan")), "finite"),
        (torch.full((1, 4, 2), 1e30), "finite"),
        (torch.tensor([[[-9e4] * 5, [9e4] * 5]]), "span"),
    ],
)
def test_bad_features_are_named(features, words):
    with pytest.raises(ValueError, match=words):
        PermutohedralLattice.build(features)


def test_values_of_another_size_are_refused():
    lattice = PermutohedralLattice.build(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"\[1, 4, K\]"):
        lattice.filter(torch.zeros(1, 5, 2))


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
