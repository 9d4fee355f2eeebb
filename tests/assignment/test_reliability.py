"""Perplexity and reliability by hand, their bounds, and the pixels sure enough for separation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.assignment.activation import present_classes
from cosa_dist.assignment.reliability import perplexity, reliability, reliable_pixels, select_pixels
from cosa_dist.assignment.threshold import Threshold
from cosa_dist.config.method import AssignmentConfig, SeparationConfig

LARGEST = -math.log(0.9e-4)
SMALLEST = -math.log(0.9)
SHAPE = AssignmentConfig(perplexity_scale=0.9, perplexity_power=1.0)


def single(border):
    return Threshold(border, border, single=True)


def test_by_hand_with_one_border():
    value = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0])
    foreground = torch.tensor([True, True, True, False, False])
    found = perplexity(value, foreground, single(0.4), SHAPE)
    expected = [SMALLEST, -math.log(0.9 * 0.5), LARGEST, -math.log(0.9 * 0.5), SMALLEST]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    other = AssignmentConfig(perplexity_scale=0.5, perplexity_power=2.0)
    squared = perplexity(value, foreground, single(0.4), other)
    assert squared[1].item() == pytest.approx(math.log(0.25) ** 2, rel=1e-4)


def test_a_pair_measures_from_the_pixels_own_side():
    value, foreground = torch.tensor([0.85, 0.1]), torch.tensor([True, False])
    found = perplexity(value, foreground, Threshold(0.2, torch.tensor(0.7)), SHAPE)
    assert found.tolist() == pytest.approx([-math.log(0.9 * 0.5)] * 2, rel=1e-4)


def test_the_weight_is_the_inverse_and_ignored_pixels_have_none():
    value, label = torch.tensor([[[0.7, 0.2, 0.5]]]), torch.tensor([[[3, 0, 255]]])
    weight = reliability(value, label, single(0.4), SHAPE)
    assert weight.flatten().tolist() == pytest.approx([-1 / math.log(0.45)] * 2 + [0.0], rel=1e-4)


@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_it_is_bounded_everywhere(value, border, foreground):
    found = perplexity(torch.tensor([value]), torch.tensor([foreground]), single(border), SHAPE)
    assert SMALLEST * 0.999 <= found.item() <= LARGEST * 1.001


@given(st.floats(0.1, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_it_falls_with_the_distance_from_the_border(border, one, other):
    near, far = sorted([one, other])
    for sign, foreground in ((1 - border, True), (-border, False)):
        value = torch.tensor([border + sign * near, border + sign * far]).double()
        found = perplexity(value, torch.tensor([foreground] * 2), single(border), SHAPE)
        assert found[1] <= found[0] + 1e-9


def test_float32_from_bfloat16():
    value = torch.tensor([0.9]).bfloat16()
    assert perplexity(value, torch.tensor([True]), single(0.4), SHAPE).dtype == torch.float32


def test_sure_pixels_by_hand():
    aux_cam = torch.zeros(2, 3, 2, 4)
    aux_cam[0, 1] = torch.tensor([[0.9, 0.55, 0.5, 0.1], [0.9, 0.9, 0.0, 0.45]])
    aux_cam[0, 0] = 1.0  # absent: must not win
    labels = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    boxes = torch.tensor([[0, 2, 0, 4], [1, 2, 0, 4]])
    pixels = reliable_pixels(
        aux_cam,
        present_classes(labels),
        boxes,
        single(0.5),
        (2, 4),
        SHAPE,
        SeparationConfig(max_perplexity=1.0),
    )
    # -log(0.9 d) <= 1 needs a normalised distance d of at least 0.41: 0.55, 0.5 and 0.45 are too near.
    assert pixels.label.tolist() == [[2, 255, 255, 0, 2, 2, 0, 255], [255] * 4 + [0] * 4]
    assert pixels.position.tolist() == [list(range(8))] * 2


def test_too_many_pixels_are_thinned_evenly_and_always_alike():
    label = torch.full((2, 20, 20), 255)
    label[0, :, 10:] = 1
    label[1, 3, :5] = 2
    pixels = select_pixels(label, 50)
    assert pixels.label.shape == (2, 50)
    assert pixels.label[0].tolist() == [1] * 50
    assert (pixels.label[1] == 2).sum() == 5
    assert torch.equal(label.flatten(1).gather(1, pixels.position), pixels.label)
    assert all(len(set(row.tolist())) == 50 for row in pixels.position)
    for half in (pixels.position[0] < 200, pixels.position[0] % 20 < 15):
        assert 15 <= half.sum() <= 35
    assert torch.equal(select_pixels(label.flip(0), 50).position[1], pixels.position[0])
