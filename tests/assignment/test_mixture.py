"""Mixtures on histograms against scikit-learn on the raw values, reference numbers and hand cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from cosa_dist.assignment.mixture import (
    Mixture,
    best_split,
    component_borders,
    extreme_start,
    fit_mixture,
)

WIDTH = 0.0025
RELEASED = {"max_iterations": 100, "tolerance": 1e-3}  # stops long before convergence


def histogram(values, floor=0.05):
    bins = round((1 - floor) / WIDTH)
    edges = np.linspace(floor, 1, bins + 1)
    counts, _ = np.histogram(values[values > floor], edges)
    return torch.from_numpy(counts), torch.from_numpy((edges[1:] + edges[:-1]) / 2)


def hills(*parts, seed=0):
    """Values drawn from Gaussians (number, mean, deviation), cut to 0..1."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(mean, deviation, n) for n, mean, deviation in parts])
    return values[(values > 0.05) & (values < 1)]


def converged_fit(values, start):
    """scikit-learn's EM on the raw values from the same start."""
    model = GaussianMixture(
        start.mean.shape[-1],
        tol=1e-10,
        max_iter=3000,
        weights_init=(start.weight / start.weight.sum()).numpy(),
        means_init=start.mean.numpy()[:, None],
        precisions_init=1 / start.variance.numpy()[:, None, None],
    )
    return model.fit(values[:, None])


@pytest.mark.parametrize("floor", [0.05, 0.2])
@pytest.mark.parametrize("components", [2, 3])
def test_released_settings_give_the_reference_numbers_up_to_a_bin(golden, components, floor):
    data = golden("rungmm_three")
    counts, centres = histogram(data["in_queue"].astype("float64").ravel(), floor)
    fit = fit_mixture(counts, centres, extreme_start(counts, centres, components), **RELEASED)
    end, begin, usable = component_borders(counts, centres, fit)
    expected = np.atleast_1d(data[f"out_modal{components}_filter{floor}"])
    found = [end.item(), begin.item()][: len(expected)]
    assert bool(usable)
    np.testing.assert_allclose(found, expected, atol=WIDTH)


@pytest.mark.parametrize(
    "parts",
    [
        [(2000, 0.25, 0.08), (1500, 0.7, 0.1)],
        [(3000, 0.3, 0.12), (600, 0.75, 0.05)],
        [(300, 0.2, 0.05), (3000, 0.6, 0.12)],
    ],
)
def test_two_components_equal_scikit_learn_on_the_raw_values(parts):
    values = hills(*parts)
    counts, centres = histogram(values)
    start = best_split(counts, centres)[2]
    fit = fit_mixture(counts, centres, start, max_iterations=3000, tolerance=1e-10)
    model = converged_fit(values, start)
    order = model.means_[:, 0].argsort()
    np.testing.assert_allclose(fit.weight, model.weights_[order], atol=2e-3)
    np.testing.assert_allclose(fit.mean, model.means_[order, 0], atol=1e-3)
    np.testing.assert_allclose(fit.variance, model.covariances_[order, 0, 0], atol=2e-4)
    end, begin, usable = component_borders(counts, centres, fit)
    lower = model.predict(values[:, None]) == order[0]
    below = values[lower].max()
    assert bool(usable)
    assert end.item() == pytest.approx(below, abs=2 * WIDTH)
    assert begin.item() == pytest.approx(end.item(), abs=5 * WIDTH)


def test_three_components_equal_scikit_learn_on_the_raw_values():
    values = hills((1500, 0.2, 0.05), (1500, 0.5, 0.06), (1500, 0.8, 0.05))
    counts, centres = histogram(values)
    start = extreme_start(counts, centres, 3, 1 / 36)
    fit = fit_mixture(counts, centres, start, max_iterations=3000, tolerance=1e-10)
    model = converged_fit(values, start)
    np.testing.assert_allclose(fit.mean, np.sort(model.means_[:, 0]), atol=2e-3)
    end, begin, usable = component_borders(counts, centres, fit)
    assert bool(usable)
    assert end.item() == pytest.approx(0.35, abs=0.03)
    assert begin.item() == pytest.approx(0.65, abs=0.03)


def test_the_order_of_the_starting_components_does_not_matter():
    counts, centres = histogram(hills((2000, 0.3, 0.1), (1000, 0.7, 0.1)))
    start = extreme_start(counts, centres, 2, 1 / 36)
    turned = Mixture(*(part.flip(-1) for part in start))
    one, other = fit_mixture(counts, centres, start), fit_mixture(counts, centres, turned)
    assert one.mean[0] < one.mean[1]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_histograms_fitted_together_come_out_as_fitted_alone():
    easy, centres = histogram(hills((2000, 0.2, 0.04), (2000, 0.8, 0.04)))
    hard, _ = histogram(hills((2000, 0.4, 0.12), (1500, 0.6, 0.15)))
    both = torch.stack([easy, hard])
    together = fit_mixture(both, centres, extreme_start(both, centres, 2, 1 / 36))
    for row, counts in enumerate(both):
        alone = fit_mixture(counts, centres, extreme_start(counts, centres, 2, 1 / 36))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row], b, rtol=1e-9, atol=1e-12)


def test_released_start_by_hand():
    counts = torch.tensor([0, 2, 0, 3, 1, 0])
    centres = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    start = extreme_start(counts, centres, 3)
    torch.testing.assert_close(start.mean, torch.tensor([0.2, 0.4, 0.5]).double(), rtol=0, atol=1e-6)
    assert start.variance.tolist() == [1.0, 1.0, 1.0]


def test_borders_by_hand():
    centres = (torch.arange(10) + 0.5).double() / 10
    half = torch.tensor([0.5, 0.5]).double()
    equal = Mixture(half, torch.tensor([0.2, 0.8]).double(), torch.tensor([0.01, 0.01]).double())
    end, begin, usable = component_borders(torch.ones(10), centres, equal)
    assert (end.item(), begin.item(), bool(usable)) == (pytest.approx(0.5), pytest.approx(0.5), True)
    gap = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 1, 1])
    end, begin, usable = component_borders(gap, centres, equal)
    assert (end.item(), begin.item(), bool(usable)) == (pytest.approx(0.3), pytest.approx(0.7), True)


def mixture(*components):
    """Components (weight, mean, deviation), ordered by their means."""
    weight, mean, deviation = torch.tensor(components, dtype=torch.float64).T
    return Mixture(weight, mean, deviation.square())


def predicted(mixture, centres):
    """scikit-learn's label of each bin centre under the same parameters."""
    model = GaussianMixture(len(mixture.mean))
    model.weights_, model.means_ = mixture.weight.numpy(), mixture.mean.numpy()[:, None]
    model.covariances_ = mixture.variance.numpy()[:, None, None]
    model.precisions_cholesky_ = model.covariances_**-0.5
    return model.predict(centres.numpy()[:, None])


def walked_end(bins, mean, component):
    """Last counted centre of a component among (centre, count, label), walking away from the other end."""
    end = None
    for x, count, label in bins:
        if label != component and x > mean:
            break
        if label == component and count:
            end = x
    return end


def random_histogram(number):
    """Overlapping, skewed, single and separate hills; a few or many values."""
    generator = np.random.default_rng(number)
    n = int(generator.integers(300, 4000))
    kind = number % 4
    if kind == 0:  # overlapping
        middle, apart = generator.uniform(0.3, 0.6), generator.uniform(0.05, 0.2)
        parts = [(n, middle, generator.uniform(0.06, 0.2)), (n // 2, middle + apart, 0.15)]
        values = hills(*parts, seed=number)
    elif kind == 1:
        values = generator.beta(*generator.uniform(1, 6, 2), n)
    elif kind == 2:
        values = hills((n, generator.uniform(0.2, 0.8), generator.uniform(0.05, 0.3)), seed=number)
    else:
        parts = [(n, mean, generator.uniform(0.02, 0.12)) for mean in generator.uniform(0.1, 0.95, 3)]
        values = hills(*parts, seed=number)
    return histogram(values)


@pytest.mark.parametrize("components", [2, 3])
def test_borders_are_where_scikit_learn_gives_bins_to_another_component(components):
    ends, begins, beyond = 0, 0, 0
    for number in range(240):
        counts, centres = random_histogram(number)
        start = extreme_start(counts, centres, components, 0.003)
        fit = fit_mixture(counts, centres, start, max_iterations=20, regularisation=1e-3)
        end, begin, usable = (value.item() for value in component_borders(counts, centres, fit))
        bins = list(zip(centres.tolist(), counts.tolist(), predicted(fit, centres), strict=True))
        mirrored = [(-x, count, label) for x, count, label in reversed(bins)]
        last = walked_end(bins, fit.mean[0], 0)
        first = walked_end(mirrored, -fit.mean[-1], components - 1)
        assert usable == (last is not None and first is not None), number
        if last is not None:
            assert end == pytest.approx(last + WIDTH / 2, abs=WIDTH), number
            ends += 1
        if first is not None:
            assert begin == pytest.approx(-first - WIDTH / 2, abs=WIDTH), number
            begins += 1
        beyond += usable and end > fit.mean[-1] + WIDTH
    assert min(ends, begins) >= 120  # of the others, sides agree that the component owns nothing
    assert components == 3 or beyond > 10  # the lower component may well own the upper one's mean


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        # Roots of log(w1 / s1) - (x - m1)^2 / (2 s1^2) = log(w2 / s2) - (x - m2)^2 / (2 s2^2).
        ((0.5, 0.3, 0.05), (0.5, 0.7, 0.05), 0.5),
        ((0.5, 0.3, 0.05), (0.5, 0.7, 0.15), 0.41935),
        ((0.8, 0.45, 0.1), (0.2, 0.55, 0.1), 0.63863),
        ((0.7, 0.4, 0.1), (0.3, 0.5, 0.2), 0.58003),
        ((0.5, 0.5, 0.05), (0.5, 0.5, 0.2), 0.58599),
        ((0.5, 0.3, 0.3), (0.5, 0.6, 0.05), 0.49967),
    ],
)
def test_two_gaussians_of_other_variances_part_at_the_root_of_the_quadratic(lower, upper, expected):
    (w1, m1, s1), (w2, m2, s2) = lower, upper
    roots = np.roots(
        [
            1 / (2 * s2**2) - 1 / (2 * s1**2),
            m1 / s1**2 - m2 / s2**2,
            m2**2 / (2 * s2**2) - m1**2 / (2 * s1**2) + np.log(w1 * s2 / (w2 * s1)),
        ]
    )
    assert min(abs(roots - expected)) < 1e-4
    centres = torch.from_numpy((np.arange(2000) + 0.5) / 2000)
    end, begin, usable = component_borders(torch.ones(2000), centres, mixture(lower, upper))
    assert usable
    assert end.item() == pytest.approx(expected, abs=1 / 2000)
    assert begin.item() == pytest.approx(end.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        # A wide lower component owns what lies beyond a narrow upper one, too: no border.
        (((0.5, 0.3, 0.3), (0.5, 0.6, 0.0316)), (0.5, 0.5)),
        (((0.5, 0.4, 0.0316), (0.5, 0.7, 0.3)), (0.5, 0.5)),
        # The same with equal means; the order of equals is that of the components.
        (((0.5, 0.5, 0.3), (0.5, 0.5, 0.05)), (0.4, 0.4)),
        (((0.5, 0.5, 0.05), (0.5, 0.5, 0.3)), (0.6, 0.6)),
        # A wide middle one between two narrow ones.
        (((0.3, 0.25, 0.02), (0.4, 0.5, 0.2), (0.3, 0.75, 0.02)), (0.3, 0.7)),
        # A component without weight, or with too little, owns no bin.
        (((0.0, 0.0, 0.001), (1.0, 0.5, 0.1)), None),
        (((1.0, 0.5, 0.1), (0.0, 0.9, 0.001)), None),
        (((1e-9, 0.5, 0.1), (1.0, 0.5, 0.1)), None),
        (((0.0, 0.0, 0.001), (0.5, 0.3, 0.1), (0.5, 0.7, 0.1)), None),
        (((0.5, 0.2, 0.05), (0.0, 0.5, 0.1), (0.5, 0.8, 0.05)), (0.5, 0.5)),
    ],
)
def test_borders_of_components_that_own_both_ends_or_nothing(components, expected):
    centres = (torch.arange(10) + 0.5).double() / 10
    end, begin, usable = component_borders(torch.ones(10), centres, mixture(*components))
    assert bool(usable) == (expected is not None)
    if expected:
        assert (end.item(), begin.item()) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


@pytest.mark.parametrize("counts", [torch.zeros(20), torch.eye(20)[7] * 500])
def test_an_empty_or_constant_histogram_gives_finite_numbers_and_no_border(counts):
    centres = torch.linspace(0.05, 1, 20)
    for start in (best_split(counts, centres)[2], extreme_start(counts, centres, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = fit_mixture(counts, centres, start)
        assert all(part.isfinite().all() for part in fit)
    fit = fit_mixture(counts, centres, extreme_start(counts, centres, 2))
    assert not component_borders(counts, centres, fit)[2]
