"""CAM-to-segmentation loss: reference numbers, a loop, and independence of how a batch is cut."""

from __future__ import annotations

import math

import pytest
import torch

from cosa_dist.losses.objective import cam_to_seg_loss, count_pixels


def loss_of(logits, label, counts=None, reliability=None):
    """The loss of logits; by default of a batch that is not cut into parts."""
    counts = count_pixels(label, reliability) if counts is None else counts
    return cam_to_seg_loss(logits.float().log_softmax(1), label, counts, reliability)


def loop_loss(logits, label, weights=None):
    """Pixel by pixel in float64; weights are brought to mean 1 on either side first."""
    background, foreground = [], []
    for image in range(label.shape[0]):
        for row in range(label.shape[1]):
            for column in range(label.shape[2]):
                target = int(label[image, row, column])
                scores = logits[image, :, row, column].double()
                if target != 255:
                    loss = scores.exp().sum().log() - scores[target]
                    weight = 1.0 if weights is None else float(weights[image, row, column])
                    (background if target == 0 else foreground).append((float(loss), weight))
    total = 0.0
    for part in (background, foreground):
        mean = sum(weight for _, weight in part) / len(part)
        total += 0.5 * sum(loss * weight / mean for loss, weight in part) / (len(part) + 1e-6)
    return total


def example(images=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, 6, 5, generator=generator)
    names = torch.tensor([0, 0, 1, 2, 3, 255, 255])
    label = names[torch.randint(0, 7, (images, 6, 5), generator=generator)]
    return logits, label


@pytest.mark.parametrize("name", ["seg_loss_normal", "seg_loss_all_ignore"])
def test_reference_numbers(golden, name):
    data = golden(name)
    logits = torch.from_numpy(data["in_x"]).requires_grad_()
    loss = loss_of(logits, torch.from_numpy(data["in_label"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(data["out"]))
    torch.testing.assert_close(logits.grad, torch.from_numpy(data["grad_x"]))


def test_equals_the_loop():
    logits, label = example()
    assert loss_of(logits, label).item() == pytest.approx(loop_loss(logits, label), rel=1e-5)


def test_by_hand():
    logits = torch.tensor([[[[0.0, 1.0, 5.0]], [[0.0, 0.0, 0.0]]]])
    label = torch.tensor([[[0, 1, 255]]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(1 + math.e)
    assert loss_of(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_count_pixels_by_hand():
    counts = count_pixels(torch.tensor([[[0, 0, 255], [1, 2, 0]]]))
    assert counts.tolist() == [3.0, 2.0]
    assert counts.dtype == torch.float32


@pytest.mark.parametrize(("value", "half"), [(0, 1.0), (2, 1.0), (255, 0.0)])
def test_a_missing_half_is_zero(value, half):
    logits = torch.zeros(1, 4, 3, 3, requires_grad=True)
    loss = loss_of(logits, torch.full((1, 3, 3), value))
    loss.backward()
    assert loss.item() == pytest.approx(half * 0.5 * math.log(4), rel=1e-5)
    assert bool(logits.grad.any()) == bool(half)


def test_gradient_against_finite_differences():
    logits, label = example(images=1)
    logits = logits.double().requires_grad_()
    # The loss itself is float32, so the step must be coarse.
    (gradient,) = torch.autograd.grad(loss_of(logits, label), logits)
    for position in [(0, 0, 0, 0), (0, 2, 3, 1), (0, 3, 5, 4)]:
        step = torch.zeros_like(logits)
        step[position] = 1e-2
        change = loop_loss((logits + step).detach(), label)
        change -= loop_loss((logits - step).detach(), label)
        assert gradient[position].item() == pytest.approx(change / 2e-2, abs=1e-5)


def example_weights(label):
    weights = 0.1 + 9 * torch.rand(label.shape, generator=torch.Generator().manual_seed(5))
    return weights.masked_fill(label == 255, 0.0)


def test_weights_equal_the_loop_and_matter():
    logits, label = example()
    weights = example_weights(label)
    found = loss_of(logits, label, reliability=weights).item()
    assert found == pytest.approx(loop_loss(logits, label, weights), rel=1e-5)
    assert abs(found - loss_of(logits, label).item()) > 1e-3
    equal = torch.full_like(weights, 3.0).masked_fill(label == 255, 0.0)
    assert loss_of(logits, label, reliability=equal).item() == pytest.approx(
        loss_of(logits, label).item(), rel=1e-5
    )


def test_weights_are_summed_by_hand():
    label = torch.tensor([[[0, 0, 255], [1, 2, 0]]])
    weights = torch.tensor([[[0.5, 1.0, 0.0], [2.0, 4.0, 0.25]]])
    assert count_pixels(label, weights).tolist() == [1.75, 6.0]


def test_weighted_gradient_in_float64():
    logits, label = example(images=1)
    logits = logits[:, :, :3, :3].double().requires_grad_()
    label = label[:, :3, :3]
    weights = example_weights(label).double()
    counts = count_pixels(label, weights)
    assert torch.autograd.gradcheck(
        lambda x: cam_to_seg_loss(x.log_softmax(1), label, counts, weights), logits
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cut", [[1, 1, 1, 1], [2, 2]])
def test_the_mean_over_parts_is_the_loss_of_the_whole(cut, weighted):
    logits, label = example(images=4)
    label[0] = 255
    label[1][label[1] != 255] = 0
    weights = example_weights(label) if weighted else (label != 255).float()
    counts = count_pixels(label, weights) / len(cut)
    whole_logits = logits.clone().requires_grad_()
    whole = loss_of(whole_logits, label, reliability=weights)
    whole.backward()
    part_logits = logits.clone().requires_grad_()
    pairs = zip(part_logits.split(cut), label.split(cut), weights.split(cut), strict=True)
    parts = torch.stack([loss_of(x, y, counts, w) for x, y, w in pairs])
    parts.mean().backward()
    torch.testing.assert_close(parts.mean(), whole)
    torch.testing.assert_close(part_logits.grad, whole_logits.grad)
    naive = torch.stack([loss_of(x, y) for x, y in zip(logits.split(cut), label.split(cut), strict=True)])
    assert (naive.mean() - whole).abs() > 1e-3


def test_float32_under_autocast_and_from_bfloat16():
    logits, label = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(logits, label) == loss_of(logits.float(), label)
    assert loss_of(logits.bfloat16(), label).dtype == torch.float32
