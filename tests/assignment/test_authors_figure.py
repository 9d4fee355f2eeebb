"""Perplexity and threshold search against the numbers of the authors' figure of pseudo-label quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from cosa_dist.assignment.mixture import (
    BINS,
    FLOOR,
    best_split,
    bin_centres,
    component_borders,
    extreme_start,
    fit_mixture,
    two_means_start,
)
from cosa_dist.assignment.reliability import perplexity
from cosa_dist.assignment.threshold import EARLY, ITERATIONS, LearnedThresholds, Threshold
from cosa_dist.config.method import AssignmentConfig, ThresholdConfig
from tests.conftest import SHARED

PUBLISHED = (0.443, 0.481)
"""where the figure's colours change from background to foreground, VOC and COCO"""


@pytest.fixture(scope="module")
def figure():
    """Loader of the figure's tables as arrays of text; skips where they are not."""
    folder = SHARED / "figure"
    if not folder.is_dir():
        pytest.skip("numbers of the authors' figure (../shared/figure) are not beside the project")
    return lambda name: np.loadtxt(folder / f"{name}.csv", delimiter=",", dtype=str)


def curve(table, steps):
    row = table[(table[:, 0] == "VOC") & (table[:, 1] == str(steps))]
    return row[0, 2:].astype(float)


def predicted_accuracy(figure, steps, config):
    """Accuracy by 1 / perplexity `[30]`, from the histogram of CAM values and the accuracy by value.

    The accuracy is interpolated between the middles of its ten bins, on each side of the border 0.5.
    """
    middle, weight = figure("cam_histograms")[1:, :2].astype(float).T
    value = (middle[:, None] + np.linspace(-0.00625, 0.00625, 41)).clip(0, 1).ravel()
    weight = np.repeat(weight, 41)
    by_value, centre = curve(figure("label_accuracy_by_cam_value"), steps), np.arange(0.05, 1, 0.1)
    sides = [np.interp(value, centre[part], by_value[part]) for part in (slice(5), slice(5, None))]
    accuracy = np.where(value < 0.5, *sides)
    points, border = torch.from_numpy(value), Threshold(0.5, 0.5, single=True)
    inverse = 1 / perplexity(points, points >= 0.5, border, config).numpy()
    places = np.minimum((inverse / 9.49 * 30).astype(int), 29)
    mass = np.bincount(places, weight, 30)
    return np.bincount(places, weight * accuracy, 30) / np.where(mass > 0, mass, np.nan)


def test_the_accuracy_by_reliability_follows_from_the_accuracy_by_value(figure):
    """The training steps after which the figure shows both."""

    def error(**form):
        shown = figure("label_accuracy_by_reliability")
        predicted = [predicted_accuracy(figure, steps, AssignmentConfig(**form)) for steps in (20, 40)]
        difference = np.concatenate(predicted) - np.concatenate([curve(shown, 20), curve(shown, 40)])
        return float(np.sqrt(np.nanmean(difference**2)))

    assert error() == pytest.approx(0.72, abs=0.05)  # points
    assert error(perplexity_scale=0.9, perplexity_power=1.0) == pytest.approx(1.8, abs=0.1)
    assert error(perplexity_scale=0.8, perplexity_power=1.0) > 2
    assert error(perplexity_scale=0.9, perplexity_power=1.5) > 2


def fine_histogram(figure, data):
    """The figure's histogram in our bins, `[BINS]` int64."""
    table = figure("cam_histograms")[1:].astype(float)
    value, count = table[:, 0], table[:, 1 if data == "voc" else 2]
    points = (value[:, None] + np.array([-5, -2.5, 0, 2.5, 5]) * 1e-3).ravel()
    counts, _ = np.histogram(points, np.linspace(FLOOR, 1, BINS + 1), weights=np.repeat(count * 1000, 5))
    return torch.from_numpy(counts.round().astype(np.int64))


BORDERS = {
    "released": (0.5675, 0.5175),
    "early": (0.48, 0.4675),
    "converged": (0.4025, 0.37),
    "split_likelihood": (0.3875, 0.2675),
}
"""where each variant puts the border of the figure's histograms of VOC and COCO"""


@pytest.mark.parametrize("variant", BORDERS)
def test_the_borders_of_the_figures_histograms(figure, variant):
    histograms = torch.stack([fine_histogram(figure, data) for data in ("voc", "coco")])
    learned = LearnedThresholds(
        ThresholdConfig(kind="two_components", variant=variant, queue=1000, momentum=0.0), torch.device("cpu")
    )
    for _ in range(200):
        learned.update(histograms)
    found = [float(threshold.low) for threshold in learned.current()]
    assert found == pytest.approx(BORDERS[variant], abs=0.003)


def test_only_a_fit_that_stops_early_comes_near_the_published_borders():
    distance = {
        variant: max(abs(a - b) for a, b in zip(found, PUBLISHED, strict=True))
        for variant, found in BORDERS.items()
    }
    assert min(distance, key=distance.__getitem__) == "early"
    assert distance["early"] < 0.04


@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize("variant", ["released", "early"])
def test_the_early_stop_is_that_of_scikit_learn(figure, data, variant):
    histogram, centres = fine_histogram(figure, data), bin_centres()
    values = np.repeat(centres.numpy(), (histogram // (histogram.sum() // 40000)).numpy())[:, None]
    start: dict[str, object] = {"n_init": 1, "random_state": 0}
    if variant == "released":
        start |= {"means_init": [[values.min()], [values.max()]], "weights_init": [0.5, 0.5]}
        start |= {"precisions_init": [[[1.0]], [[1.0]]]}
    theirs = GaussianMixture(2, **start).fit(values)
    ours = fit_mixture(
        histogram,
        centres,
        extreme_start(histogram, centres, 2)
        if variant == "released"
        else two_means_start(histogram, centres),
        tolerance=EARLY,
        max_iterations=ITERATIONS,
    )
    order = theirs.means_.ravel().argsort()
    assert ours.mean.tolist() == pytest.approx(theirs.means_.ravel()[order].tolist(), abs=5e-3)
    lower = values[theirs.predict(values) == order[0]]
    assert component_borders(histogram, centres, ours)[0].item() == pytest.approx(lower.max(), abs=8e-3)


def test_two_means_by_hand():
    centres = torch.tensor([0.1, 0.2, 0.8, 0.9]).double()
    start = two_means_start(torch.tensor([3, 1, 2, 2]), centres)
    assert start.weight.tolist() == pytest.approx([0.5, 0.5])
    assert start.mean.tolist() == pytest.approx([0.125, 0.85])
    # The most likely hard split of the same counts need not be that of the means.
    assert best_split(torch.tensor([30, 1, 1, 1]), centres)[0].item() == 0
