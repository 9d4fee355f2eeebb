"""Protocols: which classes are kept, and that looking at kept planes only equals filtering."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosa_dist.assignment.activation import filter_logits_by_labels
from cosa_dist.evaluation.protocols import (
    cam_prediction,
    chosen_planes,
    kept_classes,
    predict,
    strongest_activation,
)


def test_predicted_labels_keep_positive_logits_or_the_top_one():
    logits = torch.tensor([[-1.0, 0.1, 2.0], [-3.0, -1.0, -2.0], [0.0, -1.0, -1.0]])
    kept = kept_classes(logits, torch.zeros(3, 3), "predicted_labels")
    # A logit of exactly 0 is a sigmoid of 0.5, not above it: kept as the top one only.
    assert kept.tolist() == [[False, True, True], [False, True, False], [True, False, False]]


def test_the_other_protocols_keep_all_or_the_true_classes():
    logits, labels = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert kept_classes(logits, labels, "unfiltered").tolist() == [[True, True]]
    assert kept_classes(logits, labels, "true_labels").tolist() == [[True, False]]


@pytest.mark.parametrize("protocol", ["unfiltered", "predicted_labels", "true_labels"])
def test_prediction_equals_filtered_logits(protocol):
    generator = torch.Generator().manual_seed(0)
    segmentation = torch.randn(5, 5, 6, 7, generator=generator)
    logits = torch.randn(5, 4, generator=generator)
    labels = (torch.rand(5, 4, generator=generator) < 0.4).float()
    labels[2] = 0
    kept = kept_classes(logits, labels, protocol)
    expected = filter_logits_by_labels(segmentation, kept.float()).argmax(1)
    for one, classes, wanted in zip(segmentation, kept, expected, strict=True):
        assert torch.equal(predict(one, classes), wanted)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="'validated': choose one of unfiltered"):
        kept_classes(torch.zeros(1), torch.zeros(1), "validated")


def test_golden_released_filter(golden):
    numbers = golden("seg_validation")
    segmentation, labels = (torch.from_numpy(numbers[name]) for name in ("in_seg", "in_label"))
    kept = kept_classes(torch.zeros_like(labels), labels, "true_labels")
    ours = [predict(one, classes).numpy() for one, classes in zip(segmentation, kept, strict=True)]
    assert np.array_equal(ours, numbers["out"].argmax(1))


def test_golden_cam_mask(golden):
    numbers = golden("cam_to_label")
    cams, labels = (torch.from_numpy(numbers[name]) for name in ("in_cam", "in_label"))
    for cam, label, expected in zip(cams, labels, numbers["out_label"], strict=True):
        assert np.array_equal(cam_prediction(cam, label > 0.5, 0.5).numpy(), expected)


def test_cam_prediction_resizes_the_kept_planes_only_but_equals_resizing_all():
    generator = torch.Generator().manual_seed(1)
    cam = torch.rand(4, 5, 6, generator=generator)
    kept = torch.tensor([True, False, True, False])
    whole = torch.nn.functional.interpolate(cam[None], size=(9, 13), mode="bilinear", align_corners=False)
    value, winner = whole[0].masked_fill(~kept[:, None, None], 0).max(0)
    expected = torch.where(value > 0.4, winner + 1, 0)
    assert torch.equal(cam_prediction(cam, kept, 0.4, (9, 13)), expected)
    assert set(expected.unique().tolist()) == {0, 1, 3}


def test_a_value_at_the_threshold_is_background():
    cam = torch.tensor([[[0.5, 0.51]]])
    assert cam_prediction(cam, torch.tensor([True]), 0.5).tolist() == [[0, 1]]


def test_without_a_kept_class_all_is_background():
    cam = torch.ones(2, 3, 4)
    value, strongest = strongest_activation(cam, torch.zeros(2, dtype=torch.bool), (6, 8))
    assert value.shape == strongest.shape == (6, 8)
    assert not value.any()
    assert not strongest.any()


@pytest.mark.parametrize("classes", [[], [1], [0, 2, 3], [0, 1, 2, 3]])
def test_a_known_number_of_classes_changes_nothing(classes):
    drawn = torch.Generator().manual_seed(len(classes))
    kept = torch.zeros(4, dtype=torch.bool)
    kept[classes] = True
    segmentation, cam = torch.rand(5, 6, 7, generator=drawn), torch.rand(4, 6, 7, generator=drawn)
    count = len(classes)
    assert chosen_planes(kept, count).tolist() == classes == chosen_planes(kept).tolist()
    assert torch.equal(predict(segmentation, kept, count), predict(segmentation, kept))
    known, asked = (strongest_activation(cam, kept, (9, 9), each) for each in (count, None))
    assert all(torch.equal(one, other) for one, other in zip(known, asked, strict=True))
