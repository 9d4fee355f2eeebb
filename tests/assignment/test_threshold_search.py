"""Searched thresholds: where they go, what they forget, when they stay, and exact resume."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.mixture import (
    BINS,
    best_split,
    bin_centres,
    component_borders,
    count_activations,
    fit_mixture,
)
from cosa_dist.assignment.threshold import LearnedThresholds, Threshold, threshold_source
from cosa_dist.config.method import ThresholdConfig

CPU = torch.device("cpu")


def hills(seed, *parts):
    """Histogram [BINS] of values drawn from Gaussians (number, mean, deviation)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat(
        [mean + deviation * torch.randn(n, generator=generator) for n, mean, deviation in parts]
    )
    return count_activations(values, values < 1)


def two_hills(seed, low=0.25, high=0.75):
    return hills(seed, (600, low, 0.06), (400, high, 0.08))


def source(kind="two_components", **options):
    return LearnedThresholds(ThresholdConfig(kind=kind, **options), CPU)


def numbers(thresholds):
    return [float(x) for t in thresholds for x in (t.low, t.high)]


@pytest.mark.parametrize("variant", ["released", "early", "converged", "split_likelihood"])
def test_each_cam_gets_the_border_between_its_own_hills(variant):
    learned = source(variant=variant, queue=10, momentum=0.5)
    for step in range(20):
        learned.update(torch.stack([two_hills(step), two_hills(step, 0.5, 0.9)]))
    main, aux = learned.current()
    assert main.single
    assert 0.4 < float(main.low) == float(main.high) < 0.58
    assert 0.62 < float(aux.high) < 0.78
    assert learned.notices() == []


def test_three_components_give_a_pair_around_the_middle_hill():
    learned = source("three_components", queue=10, momentum=0.5)
    three = [hills(s, (500, 0.2, 0.04), (500, 0.5, 0.05), (500, 0.85, 0.04)) for s in range(20)]
    for histogram in three:
        learned.update(torch.stack([histogram, histogram]))
    assert not learned.current().main.single
    low, high = numbers(learned.current())[:2]
    assert 0.28 < low < 0.42
    assert 0.6 < high < 0.75


def test_no_component_sits_on_the_maxima_that_stretching_puts_at_one():
    # One broad hill, and one pixel in a hundred at the top: every stretched CAM has such a pixel.
    stretched = hills(0, (20000, 0.45, 0.22), (200, 0.99, 0.004))
    borders = {}
    for regularisation in (1e-6, ThresholdConfig().regularisation):
        start = best_split(stretched, bin_centres())[2]
        found = fit_mixture(stretched, bin_centres(), start, regularisation=regularisation)
        borders[regularisation] = component_borders(stretched, bin_centres(), found)[0].item()
    assert borders[1e-6] > 0.9
    assert 0.2 < borders[ThresholdConfig().regularisation] < 0.75


def test_the_search_regularises_its_components_as_configured():
    learned = source(queue=1, regularisation=0.02)
    learned.update(torch.stack([two_hills(0), two_hills(1)]))
    assert learned.state_dict()["mixture_variance"].min() > 0.02


def test_the_search_starts_from_the_configured_values_after_a_tenth_of_the_queue():
    learned = source(queue=30, single=0.6, aux_single=0.2)
    for step in range(3):
        assert numbers(learned.current()) == pytest.approx([0.6, 0.6, 0.2, 0.2])
        learned.update(torch.stack([two_hills(step)] * 2))
    assert numbers(learned.current())[0] < 0.6


def test_the_moving_average_by_hand():
    learned = source(variant="split_likelihood", queue=1, momentum=0.9, single=0.6)
    histogram = two_hills(0)
    learned.update(torch.stack([histogram, histogram]))
    cut = best_split(histogram, bin_centres())[0]
    border = bin_centres()[cut : cut + 2].mean().item()
    assert numbers(learned.current())[0] == pytest.approx(0.9 * 0.6 + 0.1 * border)


def test_a_margin_lies_around_the_learned_threshold():
    plain, wide = (source(queue=1, single=0.6, margin=margin) for margin in (0.0, 0.1))
    for learned in (plain, wide):
        learned.update(torch.stack([two_hills(0)] * 2))
    border = numbers(plain.current())[0]
    assert numbers(wide.current())[:2] == pytest.approx([border - 0.1, border + 0.1])


def test_the_queue_forgets_what_is_older_than_its_length():
    def after(first):
        learned = source(variant="split_likelihood", queue=4, momentum=0.0)
        for step in range(3):
            learned.update(torch.stack([two_hills(step, *first)] * 2))
        for step in range(4):
            learned.update(torch.stack([two_hills(step, 0.5, 0.9)] * 2))
        return numbers(learned.current())

    assert after((0.2, 0.4)) == after((0.3, 0.8))


@pytest.mark.parametrize("kind", ["two_components", "three_components"])
@pytest.mark.parametrize("bad", ["empty", "constant", "few"])
def test_without_groups_the_threshold_stays_and_says_so_once(kind, bad):
    learned = source(kind, queue=2, momentum=0.5)
    histograms = {
        "empty": torch.zeros(BINS, dtype=torch.int64),
        "constant": torch.eye(BINS, dtype=torch.int64)[200] * 5000,
        "few": hills(0, (20, 0.3, 0.01), (20, 0.8, 0.01)),
    }
    good = hills(0, (600, 0.25, 0.06), (600, 0.5, 0.06), (400, 0.85, 0.06))
    for _ in range(3):
        learned.update(torch.stack([good, good]))
    before = numbers(learned.current())
    notices = []
    for _ in range(4):
        learned.update(torch.stack([histograms[bad], good]))
        notices += learned.notices()
    learned.update(torch.stack([histograms[bad], good]))
    stayed = numbers(learned.current())
    learned.update(torch.stack([histograms[bad], good]))
    assert numbers(learned.current())[:2] == stayed[:2]
    assert len(notices) == 1
    assert "main CAM" in notices[0]
    assert "stays" in notices[0]
    for _ in range(2):
        learned.update(torch.stack([good, good]))
    assert learned.notices() == ["threshold search, main CAM: continues"]
    assert all(0 <= value <= 1 for value in before + numbers(learned.current()))


def test_a_queue_that_is_not_full_yet_is_no_news():
    learned = source(queue=3)
    few = torch.stack([hills(0, (10, 0.3, 0.01), (10, 0.8, 0.01))] * 2)
    said = []
    for _ in range(3):
        learned.update(few)
        said.append(len(learned.notices()))
    assert said == [0, 0, 2]


@pytest.mark.parametrize("kind", ["two_components", "three_components"])
def test_a_resumed_search_goes_on_bit_for_bit(kind):
    steps = [torch.stack([two_hills(s), two_hills(s + 50, 0.4, 0.8)]) for s in range(14)]
    straight, first, resumed = source(kind, queue=5), source(kind, queue=5), source(kind, queue=5)
    for step in steps:
        straight.update(step)
    for step in steps[:7]:
        first.update(step)
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for step in steps[7:]:
        resumed.update(step)
    expected = straight.state_dict()
    assert float(expected["thresholds"][0, 0]) != pytest.approx(0.45, abs=1e-4)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("other", [{"queue": 9}, {"kind": "three_components"}])
def test_a_state_of_other_settings_is_refused(other):
    state = source(queue=5).state_dict()
    with pytest.raises(ValueError, match="settings the run was started with"):
        source(**{"queue": 5, **other}).load_state_dict(state)
    with pytest.raises(ValueError, match="missing"):
        source().load_state_dict({})


def test_the_configured_source():
    assert not threshold_source(ThresholdConfig(), CPU).learns
    single = threshold_source(ThresholdConfig(kind="fixed_single", single=0.3), CPU)
    assert single.current().main == Threshold(0.3, 0.3, single=True)
    assert not single.learns
    assert threshold_source(ThresholdConfig(kind="two_components"), CPU).learns
