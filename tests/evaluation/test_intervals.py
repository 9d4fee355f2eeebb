"""Counts of each image and the bootstrap over them, against plain loops and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from colour_network import CLASSES, ColourNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluator import CRF, many_images

from cosa_dist.evaluation import intervals
from cosa_dist.evaluation.confusion import iou_per_class, mean_iou
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.evaluation.intervals import (
    FEWEST_IMAGES,
    RESAMPLES,
    SEED,
    ImageCounts,
    interval_of,
    interval_text,
    iou_of,
    miou_interval,
    miou_of,
    resampled,
    too_few_images,
)


@pytest.fixture
def of_any_class(monkeypatch):
    """The arithmetic on counts by hand, in which classes are in a few images."""
    monkeypatch.setattr(intervals, "FEWEST_IMAGES", 1)


def counts_of(confusions: np.ndarray, ids: list[str] | None = None) -> ImageCounts:
    """Counts under `unfiltered` and, all right, under `ideal`, of confusion matrices `[N, K, K]`."""
    true, predicted = confusions.sum(2), confusions.sum(1)
    right = np.diagonal(confusions, axis1=1, axis2=2)
    table = np.stack([true, right, predicted, true, true], axis=1)
    names = ids or [f"{number:03d}" for number in range(len(confusions))]
    return ImageCounts.of_table(names, ["unfiltered", "ideal"], table)


def random_confusions(images: int, classes: int, density: float) -> np.ndarray:
    random = np.random.default_rng(images)
    confusions = random.integers(0, 50, (images, classes, classes))
    confusions *= random.random(confusions.shape) < density
    # the last class occurs in one image's mask only, and is predicted elsewhere
    confusions[1:, -1] = 0
    return confusions


def test_the_images_add_up_to_the_report_under_every_measurement():
    samples = many_images(5)
    report = Evaluator(CLASSES, CRF).evaluate({"online": ColourNetwork()}, samples[::-1])["online"]
    assert report.counts is not None
    assert report.counts.ids == tuple(sample.id for sample in samples)
    assert report.counts.measurements == tuple(report.scores)
    assert len(report.scores) == 7
    for measurement, score in report.scores.items():
        sums = report.counts.table(measurement).sum(0)
        assert 100 * miou_of(sums) == pytest.approx(score.miou, abs=1e-12)
        assert [None if np.isnan(v) else 100 * v for v in iou_of(sums)] == list(score.iou)
        assert 100 * (sums[1].sum() / sums[0].sum()) == score.pixel_accuracy
        assert sums[2].sum() == sums[0].sum() == sum(int((s.mask < 255).sum()) for s in samples)
    true = report.counts.table("unfiltered")[:, 0]
    for sample, row in zip(samples, true, strict=True):
        assert row.tolist() == torch.bincount(sample.mask.flatten(), minlength=256)[:4].tolist()
    assert len({report.counts.table(m).tobytes() for m in report.scores}) > 4


@pytest.mark.parametrize(("images", "density"), [(7, 0.3), (40, 0.6), (3, 0.9)])
def test_the_interval_equals_a_plain_loop_over_summed_confusion_matrices(images, density, of_any_class):
    confusions = random_confusions(images, 4, density)
    random, scores = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES):
        total = torch.zeros(4, 4, dtype=torch.int64)
        for image in random.integers(images, size=images):
            total += torch.from_numpy(confusions[image])
        scores.append(100 * mean_iou(total))
    scores = sorted(score for score in scores if score == score)

    def percentile(share: float) -> float:
        place = share * (len(scores) - 1)
        below = int(place)
        return scores[below] + (place - below) * (scores[min(below + 1, len(scores) - 1)] - scores[below])

    found = miou_interval(counts_of(confusions))
    assert found == pytest.approx((percentile(0.025), percentile(0.975)), abs=1e-9)
    assert found[0] < 100 * mean_iou(torch.from_numpy(confusions.sum(0))) < found[1]


def test_iou_of_sums_has_the_nans_of_the_confusion_matrix():
    confusion = torch.tensor([[5, 1, 0], [2, 3, 0], [0, 0, 0]])
    sums = counts_of(confusion.numpy()[None]).table("unfiltered")[0]
    assert iou_of(sums) == pytest.approx(iou_per_class(confusion).numpy(), nan_ok=True)
    assert np.isnan(iou_of(sums)[2])
    assert miou_of(sums) == pytest.approx(mean_iou(confusion))
    assert np.isnan(miou_of(np.array([[4, 0], [3, 0], [3, 1]])))


def test_the_drawing_is_the_same_whatever_the_order_of_images_and_ranks(of_any_class):
    confusions = random_confusions(9, 3, 0.7)
    names = [f"{number:03d}" for number in range(9)]
    whole = counts_of(confusions)
    shares = [[4, 0, 8], [], [7, 1, 2, 6], [3, 5]]
    merged = ImageCounts.merged([counts_of(confusions[one], [names[i] for i in one]) for one in shares])
    assert merged.ids == whole.ids
    for measurement in ("unfiltered", "ideal"):
        assert np.array_equal(merged.table(measurement), whole.table(measurement))
    assert miou_interval(merged) == miou_interval(whole)


def test_one_image_says_nothing_of_others(of_any_class):
    confusions = random_confusions(2, 3, 0.9)
    assert miou_interval(counts_of(confusions[:1])) is None
    assert miou_interval(counts_of(confusions[:0])) is None
    assert miou_interval(counts_of(confusions)) is not None


def test_resamples_without_a_foreground_class_are_left_out(of_any_class):
    # The second image has background only, of which 4 pixels of 10 are taken for the class.
    confusions = np.array([[[6, 0], [0, 4]], [[6, 4], [0, 0]]])
    # Twice the first: 100. Both: background 12 / 16, class 4 / 8. Twice the second: no score.
    assert miou_interval(counts_of(confusions)) == pytest.approx((62.5, 100))
    assert miou_interval(counts_of(confusions[[1, 1, 1]])) is None


def test_a_class_that_a_resample_lacks_is_not_in_its_mean(of_any_class):
    # One class is found, the other missed, and nothing but classes is in the masks.
    confusions = np.array([[[0, 0, 0], [0, 5, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 5, 0]]])
    # Twice the first: 100, of one class. Twice the second: 0. Both: (5 / 10 + 0) / 2.
    assert miou_interval(counts_of(confusions)) == pytest.approx((0, 100))
    assert 100 * miou_of(counts_of(confusions).table("unfiltered").sum(0)) == 25


def with_rare_classes(images: int, common: int, rare: int, each: int) -> np.ndarray:
    """Counts `[N, 3, K]`: each image has one of the common classes, mostly found, and `each` a rare one.

    The rare classes are never found, which shifts resamples that lack them most.
    """
    random = np.random.default_rng(0)
    table = np.zeros((images, 3, 1 + common + rare), dtype=np.int64)
    table[:, :, 0] = [700, 600, 700]
    for image, found in enumerate(random.integers(60, 100, images)):
        table[image, :, 1 + image % common] = [100, found, 100]
    for name in range(1 + common, 1 + common + rare):
        table[random.choice(images, each, replace=False), 0, name] = 100
    return table


def test_the_fewest_images_keep_resamples_about_the_score():
    """From so many on, the resamples' mean is within a tenth of the interval's width of the score."""
    worst = np.zeros(FEWEST_IMAGES + 2)
    for images, common, rare in ((100, 10, 10), (249, 2, 18), (1449, 5, 15)):
        for each in range(1, len(worst) + 1):
            table = with_rare_classes(images, common, rare, each)
            scores = np.concatenate([miou_of(sums) for sums in resampled(table)])
            (low, high), score = interval_of(scores), float(miou_of(table.sum(0)))
            assert (low > score) == (each == 1)  # what no interval may be
            worst[each - 1] = max(worst[each - 1], (scores.mean() - score) / (high - low))
    assert (worst < 0.1).tolist() == [each >= FEWEST_IMAGES for each in range(1, len(worst) + 1)]


def test_no_interval_while_a_class_is_in_too_few_images():
    for each in (1, FEWEST_IMAGES - 1, FEWEST_IMAGES):
        table = with_rare_classes(60, 3, 2, each)
        table[:, 0, -1] = 0  # a class of no mask does not count
        counts = ImageCounts.of_table([f"{n:02d}" for n in range(60)], ["unfiltered"], table)
        assert counts.rare == ((4,) if each < FEWEST_IMAGES else ())
        found = miou_interval(counts)
        assert (found is None) == (each < FEWEST_IMAGES)
    assert found[0] < 100 * miou_of(table.sum(0)) < found[1]
    assert too_few_images(["cat", "dog"]) == "fewer than 5 images have cat, dog"
    assert too_few_images([]) == ""


def test_what_does_not_vary_has_an_interval_of_no_width():
    assert miou_interval(counts_of(random_confusions(6, 3, 1.0)[:, :2, :2]), "ideal") == (100, 100)


def test_percentiles_of_known_values():
    values = np.append(np.arange(101.0), np.nan)
    assert interval_of(values) == pytest.approx((2.5, 97.5))
    assert interval_of(np.array([np.nan])) is None
    assert interval_text((41.04, 45.26)) == "41.0 to 45.3"
    assert interval_text(None) == ""


def test_a_measurement_that_was_not_counted_is_named():
    with pytest.raises(ValueError, match="unfiltered_crf was not measured; there are unfiltered, ideal"):
        counts_of(random_confusions(2, 3, 0.9)).table("unfiltered_crf")


def test_counts_are_written_and_read_again(tmp_path):
    counts = counts_of(random_confusions(5, 4, 0.5), ["ö/1", "b", "a", "2007_000033", "c"])
    ordered = ImageCounts.merged([counts])
    path = tmp_path / "run" / "report_online.npz"
    ordered.save(path)
    again = ImageCounts.load(path)
    assert (again.ids, again.measurements, again.classes) == (ordered.ids, ("unfiltered", "ideal"), 4)
    assert again.ids == ("2007_000033", "a", "b", "c", "ö/1")
    assert np.array_equal(again.table("unfiltered"), ordered.table("unfiltered"))
    assert [each.name for each in path.parent.iterdir()] == ["report_online.npz"]
    empty = ImageCounts.of_table([], ["unfiltered"], np.zeros((0, 3, 4)))
    empty.save(path)
    assert ImageCounts.load(path).table("unfiltered").shape == (0, 3, 4)


def test_the_file_of_voc_val_stays_small(tmp_path):
    random = np.random.default_rng(0)
    confusions = np.zeros((1449, 21, 21), dtype=np.int64)
    for image in confusions:
        few = random.choice(21, 4, replace=False)
        image[np.ix_(few, few)] = random.integers(0, 80_000, (4, 4))
    path = tmp_path / "counts.npz"
    counts_of(confusions).save(path)
    # dense it would be 1449 x 5 x 21 x 4 bytes = 609 kB
    assert path.stat().st_size < 150_000


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    with np.load(path) as file:
        values = dict(file)
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "pickled":
        np.savez(path, **(values | {"pixels": np.array([{}], dtype=object)}))
    elif how == "place":
        np.savez(path, **(values | {"image": values["image"] + 5}))
    elif how == "length":
        np.savez(path, **(values | {"pixels": values["pixels"][:-1]}))
    elif how == "lacking":
        np.savez(path, **{name: value for name, value in values.items() if name != "column"})
    elif how == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))


@pytest.mark.parametrize("how", ["cut", "pickled", "place", "length", "lacking", "array"])
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "report_online.npz"
    counts_of(random_confusions(5, 4, 0.9)).save(path)
    spoil(path, how)
    with pytest.raises(ValueError, match=r"report_online\.npz is damaged \(.*evaluate again"):
        ImageCounts.load(path)


@settings(max_examples=50)
@given(st.binary() | st.binary().map(b"PK\x03\x04".__add__) | st.binary().map(b"\x93NUMPY".__add__))
def test_other_bytes_are_refused_with_a_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        ImageCounts.load(path)
