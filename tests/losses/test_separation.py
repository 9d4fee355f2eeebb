"""Contrastive separation: a loop over pixels, gradients, and independence of how a batch is cut."""

from __future__ import annotations

import math

import pytest
import torch

from cosa_dist.assignment.reliability import ReliablePixels, select_pixels
from cosa_dist.losses.separation import count_anchors, separation_loss


def loss_of(maps, pixels, anchors=None, temperature=0.5):
    """The loss; by default of a batch that is not cut into parts."""
    anchors = count_anchors(pixels) if anchors is None else anchors
    return separation_loss(maps, pixels, anchors, temperature)


def loop_loss(maps, pixels, temperature=0.5):
    """Anchor by anchor in float64; returns the sum and the number of anchors."""
    costs = []
    for image in range(len(maps)):
        vectors = maps[image].double().flatten(1)[:, pixels.position[image]].T
        labels = pixels.label[image].tolist()
        used = [i for i, name in enumerate(labels) if name != 255]
        for i in used:

            def similarity(j, i=i, vectors=vectors):
                return math.exp(torch.cosine_similarity(vectors[i], vectors[j], dim=0).item() / temperature)

            positives = [j for j in used if labels[j] == labels[i] and j != i]
            against = sum(similarity(j) for j in used if labels[j] != labels[i])
            if positives and against:
                each = [-math.log(similarity(j) / (similarity(j) + against)) for j in positives]
                costs.append(sum(each) / len(each))
    return sum(costs), len(costs)


def example(images=3, seed=0, most=100):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(images, 4, 3, 4, generator=generator)
    names = torch.tensor([0, 0, 1, 2, 255])
    label = names[torch.randint(0, 5, (images, 3, 4), generator=generator)]
    return maps, select_pixels(label, most)


@pytest.mark.parametrize("most", [100, 7])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_equals_the_loop(most, temperature):
    maps, pixels = example(most=most)
    total, anchors = loop_loss(maps, pixels, temperature)
    assert anchors > 5
    assert count_anchors(pixels) == anchors
    found = loss_of(maps, pixels, temperature=temperature)
    assert found.item() == pytest.approx(total / anchors, rel=1e-5)


def test_by_hand():
    maps = torch.tensor([[3.0, 1.0, 0.0, 5.0], [0.0, 0.0, 2.0, 5.0]])[None, :, None]
    pixels = select_pixels(torch.tensor([[[1, 1, 0, 255]]]), 10)
    # Two anchors: cosine 1 with each other, 0 with the background pixel; that one has no positive.
    assert count_anchors(pixels) == 2
    expected = math.log(1 + math.exp(-2))
    assert loss_of(maps, pixels).item() == pytest.approx(expected, rel=1e-5)


def test_separated_regions_cost_less_than_mixed_ones():
    label = torch.tensor([[[1, 1, 0, 0]]])
    apart = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[None, :, None]
    mixed = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])[None, :, None]
    assert loss_of(apart, select_pixels(label, 9)) < loss_of(mixed, select_pixels(label, 9))


def test_gradient_in_float64():
    maps, pixels = example(images=2)
    maps = maps.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, pixels), maps)


@pytest.mark.parametrize("names", [[255] * 4, [1, 255, 0, 255], [2, 2, 2, 2], [1, 1, 255, 255]])
def test_without_anchors_it_is_zero_with_zero_gradient(names):
    pixels = select_pixels(torch.tensor(names).view(1, 2, 2), 9)
    maps = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = loss_of(maps, pixels)
    loss.backward()
    assert loss == 0
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_vectors_of_zeros_have_a_bounded_gradient():
    maps, pixels = example()
    maps = torch.zeros_like(maps).requires_grad_()
    loss_of(maps, pixels).backward()
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().max() < 1e4


@pytest.mark.parametrize("cut", [[1, 1, 1, 1], [2, 2]])
def test_the_mean_over_parts_is_the_loss_of_the_whole(cut):
    maps, pixels = example(images=4)
    pixels.label[0] = 255
    whole_maps, part_maps = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    whole = loss_of(whole_maps, pixels)
    whole.backward()
    anchors = count_anchors(pixels) / len(cut)
    split = [ReliablePixels(*pair) for pair in zip(*(part.split(cut) for part in pixels), strict=True)]
    parts = torch.stack([loss_of(x, y, anchors) for x, y in zip(part_maps.split(cut), split, strict=True)])
    parts.mean().backward()
    torch.testing.assert_close(parts.mean(), whole)
    torch.testing.assert_close(part_maps.grad, whole_maps.grad)


def test_float32_under_autocast_and_from_bfloat16():
    maps, pixels = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(maps, pixels)
    assert inside == loss_of(maps, pixels)
    assert loss_of(maps.bfloat16(), pixels).dtype == torch.float32
