"""CAM normalisation, label filters, strongest classes and valid boxes."""

from __future__ import annotations

import torch

from cosa_dist.assignment.activation import (
    filter_logits_by_labels,
    gather_classes,
    inside_boxes,
    inside_boxes_on_grid,
    min_max_normalise,
    present_classes,
    scatter_classes,
    strongest_class,
)


def tensors(archive):
    """The archive's numbers as tensors, without its description."""
    return {key: torch.from_numpy(v) for key, v in archive.items() if v.dtype.kind in "fiu"}


def test_strongest_class_reference_numbers(golden):
    data = tensors(golden("cam_to_label"))
    value, name = strongest_class(data["in_cam"], present_classes(data["in_label"]))
    assert name.dtype == torch.int64
    assert torch.equal(name.masked_fill(value <= 0.5, 0), data["out_label"])


def test_logit_filter_reference_numbers(golden):
    data = tensors(golden("seg_validation"))
    assert torch.equal(filter_logits_by_labels(data["in_seg"], data["in_label"]), data["out"])


def test_min_max_by_hand():
    cam = torch.tensor([[[[1.0, 3.0, 5.0]], [[7.0, 7.0, 7.0]]]], dtype=torch.float64)
    stretched = min_max_normalise(cam)
    assert stretched.dtype == torch.float32
    expected = torch.tensor([[[[0.0, 2 / 4.00001, 4 / 4.00001]], [[0.0, 0.0, 0.0]]]])
    torch.testing.assert_close(stretched, expected)


def test_the_logit_filter_by_hand():
    labels = torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]])
    assert filter_logits_by_labels(logits, labels).flatten().tolist() == [1.0, 2.0, -1e5]


def test_the_strongest_class_is_a_present_one():
    cam = torch.tensor([[[[0.3, 0.9]], [[0.6, 0.1]], [[1.0, 1.0]]]]).expand(2, -1, -1, -1)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    value, name = strongest_class(cam, present_classes(labels))
    torch.testing.assert_close(value, torch.tensor([[[0.6, 0.9]], [[0.0, 0.0]]]))
    assert name.tolist() == [[[2, 1]], [[0, 0]]]


def test_boxes_by_hand():
    inside = inside_boxes(torch.tensor([[0, 1, 1, 3], [2, 2, 0, 3]]), (2, 3))
    assert inside.int().tolist() == [[[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_a_grid_point_reads_inside_pixels_only():
    inside = inside_boxes_on_grid(torch.tensor([[8, 64, 0, 63]]), (64, 64), (4, 4))
    # Rows are read at pixels 7 and 8: the first row touches padding; columns at 55 and 56 do not.
    assert inside[0].int().tolist() == [[0] * 4, [1] * 4, [1] * 4, [1] * 4]
    assert inside_boxes_on_grid(torch.tensor([[7, 57, 0, 64]]), (64, 64), (4, 4)).all()


def test_present_classes_by_hand():
    present = present_classes(torch.tensor([[0, 1, 0, 1.0], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert present.index[0].tolist() == [1, 3]
    assert present.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert present.index[2, 0] == 0


def test_a_known_number_of_tags_is_not_counted():
    labels = torch.tensor([[0, 1, 0, 1.0], [0, 0, 0, 0], [1, 0, 0, 0]])
    known, counted = present_classes(labels, 2), present_classes(labels)
    assert torch.equal(known.index, counted.index)
    assert torch.equal(known.valid, counted.valid)


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
    assert torch.equal(restored, cam * labels[:, :, None, None])
