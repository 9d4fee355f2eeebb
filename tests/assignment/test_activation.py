"""CAM normalisation, label filters and hard masks."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.activation import (
    cam_to_mask,
    filter_by_labels,
    filter_logits_by_labels,
    gather_classes,
    maximum_activation,
    min_max_normalise,
    present_classes,
    scatter_classes,
)


def tensors(archive):
    """The archive's numbers as tensors, without its description."""
    return {key: torch.from_numpy(v) for key, v in archive.items() if v.dtype.kind in "fiu"}


def test_cam_to_mask_reference_numbers(golden):
    data = tensors(golden("cam_to_label"))
    mask = cam_to_mask(data["in_cam"], data["in_label"], 0.5)
    assert mask.dtype == torch.int64
    assert torch.equal(mask, data["out_label"])


def test_logit_filter_reference_numbers(golden):
    data = tensors(golden("seg_validation"))
    assert torch.equal(filter_logits_by_labels(data["in_seg"], data["in_label"]), data["out"])


def test_cam_to_mask_by_hand():
    cam = torch.tensor([[[[0.9, 0.2, 0.5]], [[0.8, 0.6, 0.1]]]])
    assert cam_to_mask(cam, None, 0.5).tolist() == [[[1, 2, 0]]]
    assert cam_to_mask(cam, torch.tensor([[0.0, 1.0]]), 0.5).tolist() == [[[2, 2, 0]]]
    assert cam_to_mask(cam, torch.zeros(1, 2), 0.5).tolist() == [[[0, 0, 0]]]


def test_min_max_by_hand():
    cam = torch.tensor([[[[1.0, 3.0, 5.0]], [[7.0, 7.0, 7.0]]]], dtype=torch.float64)
    stretched = min_max_normalise(cam)
    assert stretched.dtype == torch.float32
    expected = torch.tensor([[[[0.0, 2 / 4.00001, 4 / 4.00001]], [[0.0, 0.0, 0.0]]]])
    torch.testing.assert_close(stretched, expected)


def test_filters_by_hand():
    labels = torch.tensor([[1.0, 0.0]])
    cam = torch.tensor([[[[2.0]], [[float("nan")]]]])
    assert filter_by_labels(cam, labels).flatten().tolist() == [2.0, 0.0]
    logits = torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]])
    assert filter_logits_by_labels(logits, labels).flatten().tolist() == [1.0, 2.0, -1e5]


def test_maximum_activation_ignores_absent_classes():
    cam = torch.tensor([[[[0.3, 0.9]], [[0.6, 0.1]], [[1.0, 1.0]]]]).expand(2, -1, -1, -1)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(maximum_activation(cam, labels), torch.tensor([[[0.6, 0.9]], [[0.0, 0.0]]]))


def test_present_classes_by_hand():
    present = present_classes(torch.tensor([[0, 1, 0, 1.0], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert present.index[0].tolist() == [1, 3]
    assert present.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert present.index[2, 0] == 0


def test_present_classes_keeps_one_slot_for_a_batch_without_labels():
    present = present_classes(torch.zeros(2, 3))
    assert present.index.shape == (2, 1)
    assert not present.valid.any()


def test_gather_then_scatter_is_the_label_filter():
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(5, 7, 3, 4, generator=generator)
    labels = (torch.rand(5, 7, generator=generator) < 0.4).float()
    labels[2] = 0
    present = present_classes(labels)
    restored = scatter_classes(gather_classes(cam, present.index), present, 7)
    assert torch.equal(restored, filter_by_labels(cam, labels))


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 0)])
def test_present_classes_names_bad_labels(labels):
    with pytest.raises(ValueError, match=r"labels must be \[B, C\]"):
        present_classes(labels)
