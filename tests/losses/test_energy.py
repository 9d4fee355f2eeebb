"""The dense energy: reference numbers, the written-out formula, and where it must be silent."""

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.activation import inside_boxes
from cosa_dist.config.method import EnergyConfig
from cosa_dist.lattice.permutohedral import bilateral_filter
from cosa_dist.losses.energy import dense_energy_loss

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def case(classes=3, size=16, batch=2):
    generator = torch.Generator().manual_seed(classes)
    images = torch.rand(batch, 3, size, size, generator=generator) * 40 + 100
    logits = torch.randn(batch, classes, size, size, generator=generator).requires_grad_()
    label = torch.randint(0, classes, (batch, size, size), generator=generator)
    label[torch.rand(batch, size, size, generator=generator) < 0.3] = 255
    boxes = torch.tensor([[0, size, 0, size]]).repeat(batch, 1)
    return images, logits, label, boxes


def energy_of(images, logits, label, boxes, **kernel):
    return dense_energy_loss(images, logits, label, boxes, EnergyConfig(**kernel))


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_reference_numbers(golden):
    arrays = golden("energy_K5_fullbox")
    logits, label = map(torch.from_numpy, (arrays["in_logit"], arrays["in_label"]))
    images = (torch.from_numpy(arrays["in_img"]) * STD + MEAN) * 255
    boxes = torch.tensor([[0, 64, 0, 80]] * 2)
    loss = energy_of(images, logits.requires_grad_(), label, boxes)
    torch.testing.assert_close(loss, torch.from_numpy(arrays["out"])[0], rtol=1e-4, atol=0)
    expected = torch.from_numpy(arrays["grad_logit"])
    largest = float(expected.abs().max())
    torch.testing.assert_close(gradient(loss, logits), expected, rtol=0, atol=1e-4 * largest)


def test_formula_and_gradient_written_out():
    images, logits, label, boxes = case()
    boxes[1] = torch.tensor([4, 16, 2, 10])
    probabilities = F.avg_pool2d(logits.softmax(1), 2)
    inside = torch.zeros(2, 1, 8, 8)
    inside[0] = 1
    inside[1, :, 2:8, 1:5] = 1
    unlabelled = (label == 255)[:, None, ::2, ::2]
    masked = (probabilities * inside).detach()
    gate = torch.where(unlabelled, 1.0, inside * (1 - masked.amax(1, keepdim=True)))
    filtered = bilateral_filter(images[..., ::2, ::2], masked, 15, 50)
    expected = -(masked * gate * filtered).sum() / 2 * 1e-3
    surrogate = (probabilities * (-2 * gate * filtered * inside) / 2).sum() * 1e-3
    loss = energy_of(images, logits, label, boxes, weight=1e-3)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(surrogate, logits))


def test_gradient_agrees_with_differences_where_the_gate_is_constant():
    # With every pixel unlabelled the gate is 1; what is left is the lattice's small asymmetry.
    images, logits, label, boxes = case()
    label.fill_(255)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    direction += logits.detach()
    slope = (gradient(energy_of(images, logits, label, boxes), logits) * direction).sum()
    step = 0.01 * direction
    ahead = energy_of(images, logits.detach() + step, label, boxes)
    behind = energy_of(images, logits.detach() - step, label, boxes)
    torch.testing.assert_close((ahead - behind) / 0.02, slope, rtol=0.05, atol=0)


def test_grid_logits_are_upsampled_to_the_label():
    images, logits, label, boxes = case()
    grid = logits.detach()[..., :5, :5]
    upsampled = F.interpolate(grid, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(
        energy_of(images, grid, label, boxes),
        energy_of(images, upsampled, label, boxes),
    )


def test_empty_box_is_zero_and_finite():
    images, logits, label, boxes = case()
    loss = energy_of(images, logits, label, boxes * 0)
    assert loss.item() == 0
    assert torch.equal(gradient(loss, logits), torch.zeros_like(logits))


def test_no_gradient_outside_the_box_and_some_inside():
    images, logits, label, boxes = case()
    boxes[:] = torch.tensor([4, 12, 4, 12])
    found = gradient(energy_of(images, logits, label, boxes), logits)
    inside = inside_boxes(boxes, (16, 16))[:, None].expand_as(found)
    assert found[~inside].abs().max() == 0
    assert (found[inside] != 0).all()


def test_confident_labelled_pixels_count_less_than_unlabelled_ones():
    images, logits, label, boxes = case()
    sure = logits.detach() * 20
    labelled = energy_of(images, sure, label * 0, boxes)
    unlabelled = energy_of(images, sure, label * 0 + 255, boxes)
    assert unlabelled < labelled * 2 < 0


def test_one_channel_has_no_gradient():
    images, logits, label, boxes = case(classes=1)
    loss = energy_of(images, logits, label * 0 + 255, boxes)
    assert loss < 0
    assert gradient(loss, logits).abs().max() == 0


def test_batch_is_the_mean_of_its_images():
    images, logits, label, boxes = case(batch=3)
    boxes[2] = torch.tensor([0, 8, 0, 16])
    alone = [
        energy_of(images[i : i + 1], logits[i : i + 1], label[i : i + 1], boxes[i : i + 1]) for i in range(3)
    ]
    together = energy_of(images, logits, label, boxes)
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_autocast_changes_nothing_for_float32_logits():
    images, logits, label, boxes = case()
    plain = energy_of(images, logits, label, boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = energy_of(images, logits, label, boxes)
        half = energy_of(images, logits.bfloat16(), label, boxes)
    assert torch.equal(plain, cast)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.02, atol=0)


def test_weight_and_scale_of_the_gradient_follow_the_loss():
    images, logits, label, boxes = case()
    one = energy_of(images, logits, label, boxes, weight=1e-7)
    three = 3 * energy_of(images, logits, label, boxes, weight=1e-7)
    torch.testing.assert_close(gradient(three, logits), 3 * gradient(one, logits))


def test_the_box_is_half_open():
    mask = inside_boxes(torch.tensor([[1, 3, 0, 2], [0, 0, 0, 4]]), (4, 4))
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, 1:3, 0:2] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(2, 3, 16, 8)}, "label"),
        ({"boxes": torch.zeros(1, 4)}, "boxes"),
    ],
)
def test_bad_input_is_named(change, words):
    images, logits, label, boxes = case()
    arguments = {"images": images, "logits": logits, "label": label, "boxes": boxes}
    with pytest.raises(ValueError, match=words):
        energy_of(**(arguments | change))
