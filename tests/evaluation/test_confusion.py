"""Confusion matrices and their scores: by hand, against loops, against the golden numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cosa_dist.evaluation.confusion import (
    confusion_matrix,
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
    [([0, 1], "differ in shape"), ([0, 1, 255], "allow 0 to 1"), ([-1, 0, 0], "allow 0 to 1")],
)
def test_bad_predictions_are_refused(prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor([0, 1, 1]), 2)


def test_golden_scores(golden):
    numbers = golden("scores")
    target, prediction = (torch.from_numpy(numbers[name]) for name in ("in_gt", "in_pred"))
    confusion = confusion_matrix(prediction, target, len(numbers["out_iou"]))
    assert pixel_accuracy(confusion) == pytest.approx(float(numbers["out_pAcc"]), abs=1e-12)
    assert mean_accuracy(confusion) == pytest.approx(float(numbers["out_mAcc"]), abs=1e-12)
    assert mean_iou(confusion) == pytest.approx(float(numbers["out_miou"]), abs=1e-12)
    np.testing.assert_allclose(iou_per_class(confusion).numpy(), numbers["out_iou"], atol=1e-12)
