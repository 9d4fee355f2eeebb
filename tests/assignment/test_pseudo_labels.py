"""Pseudo-labels against the reference numbers and against plain formulations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.activation import (
    filter_logits_by_labels,
    inside_boxes,
    present_classes,
    strongest_class,
)
from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.mixture import BINS
from cosa_dist.assignment.pseudo_labels import (
    cam_pseudo_label,
    make_assignment,
    segmentation_pseudo_label,
)
from cosa_dist.assignment.reliability import reliability
from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig, SeparationConfig


def tensors(archive):
    """The archive's numbers as tensors, without its description."""
    return {key: torch.from_numpy(v) for key, v in archive.items() if v.dtype.kind in "fiu"}


def pair_label(cam, labels, boxes, low, high, downscale=2):
    return cam_pseudo_label(cam, present_classes(labels), boxes, Threshold(low, high), downscale)


def single(border):
    return Threshold(border, border, single=True)


def plain_cam_pseudo_label(cam, labels, boxes, low, high, downscale=2):
    """One image at a time, all planes at full size, no padding of the classes."""
    result = torch.full((len(cam), *cam.shape[-2:]), 255)
    for image, (top, bottom, left, right) in enumerate(boxes.tolist()):
        keys = [0, *(labels[image].nonzero().flatten() + 1).tolist()]
        winners = []
        for height in (high, low):
            planes = torch.cat([torch.full_like(cam[image, :1], height), cam[image]])[None]
            size = [side // downscale for side in cam.shape[-2:]]
            small = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
            probability = small[:, keys].softmax(1)
            large = F.interpolate(probability, size=cam.shape[-2:], mode="bilinear", align_corners=False)
            winners.append(torch.tensor(keys)[large.argmax(1)[0]])
        for row in range(top, bottom):
            for column in range(left, right):
                confident, lenient = (int(winner[row, column]) for winner in winners)
                if confident > 0:
                    result[image, row, column] = confident
                elif lenient == 0:
                    result[image, row, column] = 0
    return result


def plain_segmentation_pseudo_label(segmentation, labels, cam_size, temperature=0.01):
    """Softmax of every pixel at full resolution, then resized."""
    probability = (filter_logits_by_labels(segmentation, labels) / temperature).softmax(1)
    return F.interpolate(probability[:, 1:], size=cam_size, mode="bilinear", align_corners=False)


def smooth_cam(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 5, 6, generator=generator)
    return F.interpolate(coarse, size=shape[2:], mode="bilinear")


@pytest.mark.parametrize("name", ["cam2mask_nopar_0.7_0.25", "cam2mask_nolabel_image"])
def test_cam_pseudo_label_reference_numbers(golden, name):
    data = tensors(golden(name))
    label = pair_label(data["in_cam"], data["in_label"], data["in_boxes"], 0.25, 0.7)
    assert label.dtype == torch.int64
    assert torch.equal(label, data["out"].long())


@pytest.mark.parametrize("downscale", [1, 2, 3])
def test_cam_pseudo_label_equals_the_plain_formulation(downscale):
    cam = smooth_cam((4, 6, 33, 42))
    labels = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1.0]])
    boxes = torch.tensor([[0, 33, 0, 42], [2, 30, 5, 40], [10, 10, 0, 42], [0, 20, 7, 42]])
    label = pair_label(cam, labels, boxes, 0.4, 0.6, downscale)
    expected = plain_cam_pseudo_label(cam, labels, boxes, 0.4, 0.6, downscale)
    assert {0, 255} < set(expected.unique().tolist())
    assert torch.equal(label, expected)


def test_cam_pseudo_label_by_hand():
    cam = torch.tensor([0.9, 0.5, 0.1])[None, None, None].repeat(1, 2, 1, 1)
    cam[:, 0] = 1.0  # absent: must not compete
    box = torch.tensor([[0, 1, 0, 3]])
    label = pair_label(cam, torch.tensor([[0.0, 1.0]]), box, 0.25, 0.7, downscale=1)
    assert label.tolist() == [[[2, 255, 0]]]


def test_thresholds_may_be_tensors():
    cam, labels = smooth_cam((1, 3, 16, 16)), torch.tensor([[1.0, 0.0, 1.0]])
    box = torch.tensor([[0, 16, 0, 16]])
    numbers = pair_label(cam, labels, box, 0.4, 0.6)
    tensors = pair_label(cam, labels, box, torch.tensor(0.4), torch.tensor(0.6))
    assert torch.equal(numbers, tensors)


def test_an_image_without_labels_is_background_in_its_box():
    boxes = torch.tensor([[1, 3, 0, 2]])
    label = pair_label(torch.rand(1, 3, 4, 4), torch.zeros(1, 3), boxes, 0.25, 0.7)
    expected = torch.full((1, 4, 4), 255)
    expected[0, 1:3, 0:2] = 0
    assert torch.equal(label, expected)


def test_segmentation_pseudo_label_reference_numbers(golden):
    data = golden("seg_refine_by_label_t0.01_after0")
    segmentation, labels, out = (torch.from_numpy(data[k]) for k in ("in_seg", "in_label", "out"))
    label = segmentation_pseudo_label(segmentation, labels, (12, 10), 0.01)
    torch.testing.assert_close(label, out[:, 1:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cam_size", [(28, 28), (30, 20), (448, 37), (7, 11), (500, 450)])
def test_segmentation_pseudo_label_equals_the_plain_formulation(cam_size):
    generator = torch.Generator().manual_seed(1)
    segmentation = torch.randn(2, 4, 448, 448, generator=generator) * 0.02
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    label = segmentation_pseudo_label(segmentation, labels, cam_size, 0.01)
    expected = plain_segmentation_pseudo_label(segmentation, labels, cam_size)
    assert expected[0, 0].std() > 0.05
    torch.testing.assert_close(label, expected, atol=2e-5, rtol=1e-4)
    assert not label[1].any()


def example_output(size=(32, 32)):
    return MultiScaleOutput(
        cam=smooth_cam((2, 3, *size), 1),
        aux_cam=smooth_cam((2, 3, *size), 2),
        segmentation=torch.randn(2, 4, *size),
        logits=torch.zeros(2, 3),
        aux_logits=torch.zeros(2, 3),
    )


def test_assignment_uses_each_cam_with_its_own_thresholds():
    output, labels = example_output(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    boxes = torch.tensor([[0, 32, 0, 32], [4, 20, 0, 32]])
    thresholds = Thresholds(Threshold(0.2, 0.7), Threshold(0.4, 0.5))
    assignment = make_assignment(output, labels, boxes, thresholds, (4, 4), AssignmentConfig())
    main = pair_label(output.cam, labels, boxes, 0.2, 0.7)
    aux = pair_label(output.aux_cam, labels, boxes, 0.4, 0.5)
    assert torch.equal(assignment.cam_pseudo_label, main)
    assert torch.equal(assignment.aux_cam_pseudo_label, aux)
    expected = plain_segmentation_pseudo_label(output.segmentation, labels, (4, 4))
    torch.testing.assert_close(assignment.segmentation_pseudo_label, expected, atol=2e-5, rtol=1e-4)


def test_an_assignment_made_in_inference_mode_can_be_a_target():
    pair = Thresholds(Threshold(0.25, 0.7), Threshold(0.25, 0.7))
    with torch.inference_mode():
        output = example_output()
        boxes = torch.tensor([[0, 32, 0, 32]] * 2)
        assignment = make_assignment(output, torch.ones(2, 3), boxes, pair, (4, 4), AssignmentConfig())
    cam = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (cam * assignment.segmentation_pseudo_label).sum().backward()
    assert torch.equal(cam.grad, assignment.segmentation_pseudo_label)
    assert not assignment.cam_pseudo_label.is_inference()


def test_a_single_threshold_by_hand():
    cam = torch.tensor([[0.9, 0.5, 0.49], [0.1, 0.6, 0.9]])[None, None].repeat(1, 3, 1, 1)
    cam[:, 0] = 1.0  # absent: must not compete
    cam[0, 2, 1, 1] = 0.7
    labels, box = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0, 2, 0, 2]])
    strongest = strongest_class(cam, present_classes(labels))
    label = single(0.5).label(strongest, inside_boxes(box, (2, 3)))
    assert label.tolist() == [[[2, 2, 255], [0, 3, 255]]]


@pytest.mark.parametrize("border", [0.0, 0.5])
def test_a_single_threshold_calls_an_image_without_labels_background(border):
    strongest = strongest_class(torch.rand(1, 3, 4, 4), present_classes(torch.zeros(1, 3)))
    assert not strongest.value.any()
    label = single(border).label(strongest, torch.ones(1, 4, 4).bool())
    assert not label.any()


def test_further_parts_are_made_only_if_wanted():
    output, labels = example_output(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    boxes = torch.tensor([[0, 32, 0, 32], [4, 20, 0, 32]])
    thresholds = Thresholds(single(0.5), single(torch.tensor(0.4)))
    plain = make_assignment(output, labels, boxes, thresholds, (4, 4), AssignmentConfig())
    assert [plain.reliability, plain.aux_reliability, plain.reliable_pixels, plain.histograms] == [None] * 4
    config = AssignmentConfig(reliability=True)
    whole = make_assignment(
        output,
        labels,
        boxes,
        thresholds,
        (4, 4),
        config,
        separation=SeparationConfig(),
        count_activations=True,
    )
    assert torch.equal(whole.cam_pseudo_label, plain.cam_pseudo_label)
    assert torch.equal(whole.reliability > 0, whole.cam_pseudo_label != 255)
    assert torch.equal(whole.aux_reliability > 0, whole.aux_cam_pseudo_label != 255)
    value = strongest_class(output.aux_cam, present_classes(labels)).value
    expected = reliability(value, whole.aux_cam_pseudo_label, single(0.4), config)
    torch.testing.assert_close(whole.aux_reliability, expected)
    assert whole.histograms.shape == (2, BINS)
    assert whole.reliable_pixels.label.shape == (2, 16)


def test_a_pair_keeps_its_label_when_weights_are_wanted():
    output, labels = example_output(), torch.ones(2, 3)
    boxes = torch.tensor([[0, 32, 0, 32]] * 2)
    pair = Thresholds(Threshold(0.5, 0.7), Threshold(0.5, 0.6))
    plain = make_assignment(output, labels, boxes, pair, (4, 4), AssignmentConfig())
    weighed = make_assignment(output, labels, boxes, pair, (4, 4), AssignmentConfig(reliability=True))
    assert torch.equal(weighed.cam_pseudo_label, plain.cam_pseudo_label)
    assert torch.equal(weighed.reliability > 0, plain.cam_pseudo_label != 255)
