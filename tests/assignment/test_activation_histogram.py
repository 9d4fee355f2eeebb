"""Histograms of activations against numpy, and what counts."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from cosa_dist.assignment.activation import present_classes
from cosa_dist.assignment.mixture import (
    BINS,
    FLOOR,
    activation_histogram,
    bin_centres,
    count_activations,
)

EVERYWHERE = torch.tensor([[0, 64, 0, 64]] * 2)


def cams(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 4, 5, 5, generator=generator)
    return F.interpolate(coarse, size=(64, 64), mode="bilinear")


def test_counts_equal_numpy():
    values = torch.rand(5000, generator=torch.Generator().manual_seed(1)).double()
    expected, _ = np.histogram(values[values > FLOOR], np.linspace(FLOOR, 1, BINS + 1))
    assert count_activations(values, torch.ones(5000, dtype=torch.bool)).tolist() == expected.tolist()
    assert bin_centres()[0].item() == FLOOR + (1 - FLOOR) / BINS / 2


def test_floor_mask_and_numbers_that_are_none():
    values = torch.tensor([0.0, 0.05, 0.0501, 0.9999, 1.0, float("nan"), 0.5])
    counted = torch.tensor([True] * 6 + [False])
    counts = count_activations(values, counted)
    assert counts.sum() == 3
    assert (counts[0], counts[-1]) == (1, 2)


def test_the_grid_reads_the_strongest_present_class():
    cam, labels = cams(), torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = activation_histogram(cam, present_classes(labels), EVERYWHERE)
    small = F.interpolate(cam, size=(4, 4), mode="bilinear", align_corners=False)
    values = (small * labels[:, :, None, None]).amax(dim=1)
    assert found.tolist() == count_activations(values, torch.ones_like(values).bool()).tolist()
    assert found.sum() == 32


def test_outside_the_box_and_without_labels_nothing_counts():
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    boxes = torch.tensor([[16, 48, 0, 32], [0, 64, 0, 64]])
    assert activation_histogram(cams(), present_classes(labels), boxes).sum() == 4
    boxes[0] = torch.tensor([5, 5, 0, 64])
    assert activation_histogram(cams(), present_classes(labels), boxes).sum() == 0


def test_a_crop_smaller_than_the_grid_is_read_once():
    cam = torch.full((1, 1, 12, 12), 0.5)
    box = torch.tensor([[0, 12, 0, 12]])
    assert activation_histogram(cam, present_classes(torch.ones(1, 1)), box).sum() == 1
