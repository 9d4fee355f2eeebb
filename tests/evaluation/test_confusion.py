"""Confusion matrices and average precision: by hand, against loops and scikit-learn, the golden numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cosa_dist.evaluation.confusion import (
    class_average_precision,
    confusion_matrix,
    count_places,
    image_average_precision,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)


def test_counted_by_hand():
    target = torch.tensor([[0, 0, 1], [1, 2, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    confusion = confusion_matrix(prediction, target, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion.dtype == torch.int64
    iou = iou_per_class(confusion)
    assert iou[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert iou[3].isnan()
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert pixel_accuracy(confusion) == pytest.approx(3 / 5)
    assert mean_accuracy(confusion) == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 7, (2, 9, 11))
    prediction = rng.integers(0, 5, target.shape)
    expected = np.zeros((5, 5), dtype=int)
    for true, said in zip(target.ravel(), prediction.ravel(), strict=True):
        if true < 5:
            expected[true, said] += 1
    counted = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(target), 5)
    assert np.array_equal(counted.numpy(), expected)


def test_a_class_that_is_only_predicted_has_no_share_in_the_mean():
    confusion = confusion_matrix(torch.tensor([0, 0, 2, 1]), torch.tensor([0, 0, 0, 1]), 3)
    assert iou_per_class(confusion)[2] == 0
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_accuracy(confusion) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [([1], [255]), ([0, 0, 0], [0, 0, 0]), ([0, 1, 0], [0, 0, 255]), ([2, 0], [255, 255]), ([], [])],
)
def test_truth_without_a_foreground_class_gives_nan_and_neither_0_nor_100(prediction, target):
    confusion = confusion_matrix(torch.tensor(prediction), torch.tensor(target), 3)
    assert confusion[1:].sum() == 0
    for score in (mean_iou, pixel_accuracy, mean_accuracy):
        assert math.isnan(score(confusion))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ([0, 1], "differ in shape"),
        ([0, 1, 255], "1 pixels are predicted as no class: 2 classes allow 0 to 1"),
        ([-1, 0, 2], "2 pixels are predicted as no class"),
    ],
)
def test_bad_predictions_are_refused(prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor([0, 1, 1]), 2)


def test_places_are_counted_as_numpy_counts_them():
    places = torch.randint(0, 7, (3, 50), generator=torch.Generator().manual_seed(1))
    assert count_places(places, 9).tolist() == np.bincount(places.numpy().ravel(), minlength=9).tolist()


def test_golden_scores(golden):
    numbers = golden("scores")
    target, prediction = (torch.from_numpy(numbers[name]) for name in ("in_gt", "in_pred"))
    confusion = confusion_matrix(prediction, target, len(numbers["out_iou"]))
    assert pixel_accuracy(confusion) == pytest.approx(float(numbers["out_pAcc"]), abs=1e-12)
    assert mean_accuracy(confusion) == pytest.approx(float(numbers["out_mAcc"]), abs=1e-12)
    assert mean_iou(confusion) == pytest.approx(float(numbers["out_miou"]), abs=1e-12)
    np.testing.assert_allclose(iou_per_class(confusion).numpy(), numbers["out_iou"], atol=1e-12)


def test_average_precision_by_hand():
    # Ranks of the positives: 1st and 3rd of three classes.
    scores, labels = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    assert image_average_precision(scores, labels).tolist() == pytest.approx([(1 + 2 / 3) / 2])
    per_class = class_average_precision(scores, labels)
    assert per_class[[0, 2]].tolist() == [1, 1]
    assert per_class[1].isnan()


def test_equal_scores_form_one_step():
    scores, labels = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert image_average_precision(scores, labels).tolist() == [0.25]


@pytest.mark.parametrize("values", [3, 1000])
def test_average_precision_equals_scikit_learn(values):
    rng = np.random.default_rng(values)
    scores = rng.integers(0, values, (40, 6)).astype(np.float32)
    labels = (rng.random((40, 6)) < 0.3).astype(np.float32)
    labels[5] = 0
    ours = image_average_precision(torch.from_numpy(scores), torch.from_numpy(labels))
    labelled = labels.any(1)
    assert len(ours) == labelled.sum() < 40
    expected = [
        average_precision_score(y, s) for y, s in zip(labels[labelled], scores[labelled], strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)
    per_class = class_average_precision(torch.from_numpy(scores), torch.from_numpy(labels))
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(per_class.numpy(), expected, atol=1e-12)


def test_golden_image_average_precision(golden):
    numbers = golden("compute_mAP")
    ours = image_average_precision(
        torch.from_numpy(numbers["in_pred"]), torch.from_numpy(numbers["in_label"])
    )
    np.testing.assert_allclose(ours.numpy(), numbers["out"], atol=1e-12)
