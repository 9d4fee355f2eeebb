"""The lattice: simplices, hand-computed lines, exact Gaussian sums, properties of a linear map."""

import math

import pytest
import torch

from cosa_dist.lattice.permutohedral import (
    PermutohedralLattice,
    _origin_spans,
    _vertex_keys,
    bilateral_features,
    bilateral_filter,
    bilateral_spans,
    elevate,
    enclosing_simplices,
)


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


def flat_image(count=2):
    """Colours with a large part of one colour, so that some vertices have very many points."""
    images = (random(count, 3, 24, 30, seed=12) * 255).to(torch.uint8)
    images[:, :, 4:] = 90
    return images


@pytest.mark.parametrize(("sigma_rgb", "sigma_xy"), [(15.0, 50.0), (5.0, 121.0), (0.2, 0.7)])
def test_known_spans_change_no_bit_and_hold_all_origins(sigma_rgb, sigma_xy):
    images, values = flat_image(), random(2, 4, 24, 30, seed=13)
    if sigma_rgb > 1:
        images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    else:  # the spans are too wide for the keys, so the coordinates, which are not, are looked at
        images = images // 3
    features, spans = (make(images, sigma_rgb, sigma_xy) for make in (bilateral_features, bilateral_spans))
    known = PermutohedralLattice.build(features, spans)
    for name, tensor in vars(PermutohedralLattice.build(features)).items():
        other = getattr(known, name)
        assert torch.equal(tensor, other) if isinstance(tensor, torch.Tensor) else tensor == other
    assert torch.equal(
        bilateral_filter(images, values, sigma_rgb, sigma_xy),
        bilateral_filter(images.float(), values, sigma_rgb, sigma_xy),
    )
    origin = enclosing_simplices(features.reshape(-1, 5)).origin[:-1]
    room = math.prod(high - low + 24 for low, high in _origin_spans(spans))
    assert (room * 2 > 2**62) == (sigma_rgb < 1)
    low, high = torch.tensor(_origin_spans(spans)).unbind(1)
    assert (origin >= low[:, None]).all()
    assert (origin <= high[:, None]).all()


def test_keys_of_known_spans_are_not_those_of_a_neighbouring_vertex():
    images = flat_image(1)
    features, spans = (make(images, 15.0, 9.0) for make in (bilateral_features, bilateral_spans))
    simplices = enclosing_simplices(features[0])
    keys, strides = _vertex_keys(simplices, 1, spans)
    vertices = {}
    for remainder in range(6):
        places = simplices.origin + remainder - 6 * (simplices.rank > 5 - remainder)
        vertices |= dict(zip(map(tuple, places.long().t().tolist()), keys[remainder].tolist(), strict=True))
    assert len(set(vertices.values())) == len(vertices) > 500
    for place, key in list(vertices.items())[::7]:
        for axis in range(6):
            neighbour = tuple(x + 1 - 6 * (index == axis) for index, x in enumerate(place))
            wanted = key + sum(strides) - 6 * strides[axis]
            assert vertices.get(neighbour, wanted) == wanted
            assert (wanted in vertices.values()) == (neighbour in vertices)


@pytest.mark.parametrize("longest", [1, 7, 256])
def test_long_bags_are_summed_in_parts(longest):
    images, values = flat_image(), random(2, 720, 5, seed=14)
    features = bilateral_features(images, 15.0, 50.0)
    whole = PermutohedralLattice.build(features)
    parts = PermutohedralLattice.build(features, longest_bag=longest)
    lengths = parts.splat_offsets.diff()
    assert whole.splat_offsets.diff().max() > 256 >= longest == lengths.max()
    assert lengths.min() > 0
    assert torch.equal(parts.blur_vertices, whole.blur_vertices)
    assert torch.equal(parts.splat_offsets[parts.vertex_offsets.long()], whole.splat_offsets)
    torch.testing.assert_close(parts.filter(values), whole.filter(values), rtol=2e-6, atol=1e-7)
    assert torch.equal(parts.filter(values), parts.filter(values))


def test_short_bags_need_no_second_sum():
    features = random(1, 50, 2, seed=15) * 9
    whole, parts = (PermutohedralLattice.build(features, longest_bag=n) for n in (None, 50))
    assert parts.vertex_offsets is None
    assert torch.equal(parts.splat_offsets, whole.splat_offsets)
