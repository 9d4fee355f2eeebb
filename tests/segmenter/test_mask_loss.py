"""The loss on masks: against plain cross-entropy, with ignored and weighed pixels, however a batch is cut."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cosa_dist.data.reading.samples import Batch
from cosa_dist.segmenter.network import balanced, mask_loss, pixel_weights


def batch_of(masks, reliability=None):
    count = len(masks)
    views = torch.zeros(count, 3, *masks.shape[1:], dtype=torch.uint8)
    numbers = torch.arange(count)
    return Batch(
        ids=[str(n) for n in range(count)],
        positions=numbers,
        weak=views,
        strong=views,
        labels=torch.zeros(count, 2),
        boxes=torch.zeros(count, 4, dtype=torch.int64),
        masks=masks,
        reliability=reliability,
    )


@pytest.fixture
def example():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 8, 8, requires_grad=True)
    masks = torch.randint(0, 4, (3, 8, 8), dtype=torch.uint8)
    masks[0, :4] = 255
    return logits, masks


def test_without_weights_it_is_the_usual_cross_entropy(example):
    logits, masks = example
    weights = pixel_weights(batch_of(masks), weigh=False)
    loss = mask_loss(logits, masks, weights, weights.sum())
    torch.testing.assert_close(loss, functional.cross_entropy(logits, masks.long(), ignore_index=255))


def test_reliability_weighs_each_pixel(example):
    logits, masks = example
    reliability = torch.randint(0, 256, masks.shape, dtype=torch.uint8)
    weights = pixel_weights(batch_of(masks, reliability), weigh=True)
    loss = mask_loss(logits, masks, weights, weights.sum())
    total, count = torch.zeros(()), 0.0
    for image in range(3):
        for y in range(8):
            for x in range(8):
                if masks[image, y, x] != 255:
                    weight = float(reliability[image, y, x]) / 255
                    probability = logits[image, :, y, x].softmax(0)[int(masks[image, y, x])]
                    total = total - weight * probability.log()
                    count += weight
    torch.testing.assert_close(loss, total / count)


def test_balanced_the_loss_is_the_mean_of_the_means_over_background_and_foreground(example):
    logits, masks = example
    weights = pixel_weights(batch_of(masks), weigh=False)
    counts = torch.stack([(masks == 0).sum(), ((masks > 0) & (masks < 255)).sum()]).float()
    loss = mask_loss(logits, masks, balanced(weights, masks, counts), counts.sum())
    sides = [
        functional.cross_entropy(logits, masks.long().masked_fill(other, 255), ignore_index=255)
        for other in (masks > 0, masks == 0)
    ]
    torch.testing.assert_close(loss, sum(sides) / 2)


def test_balanced_without_foreground_half_of_the_loss_is_left(example):
    logits, masks = example
    masks = torch.where(masks == 255, masks, 0).to(masks)
    weights = pixel_weights(batch_of(masks), weigh=False)
    counts = torch.stack([(masks == 0).sum(), torch.tensor(0)]).float()
    loss = mask_loss(logits, masks, balanced(weights, masks, counts), counts.sum())
    expected = functional.cross_entropy(logits, masks.long(), ignore_index=255) / 2
    torch.testing.assert_close(loss, expected)


def test_a_batch_cut_in_two_gives_the_same_gradient(example):
    logits, masks = example
    whole = pixel_weights(batch_of(masks), weigh=False)
    mask_loss(logits, masks, whole, whole.sum()).backward()
    expected, logits.grad = logits.grad.clone(), None
    for part in (slice(0, 1), slice(1, 3)):  # two micro-batches of unequal numbers of counted pixels
        (mask_loss(logits[part], masks[part], whole[part], whole.sum() / 2) / 2).backward()
    torch.testing.assert_close(logits.grad, expected)


def test_where_nothing_counts_loss_and_gradient_are_zero(example):
    logits, masks = example
    masks.fill_(255)
    weights = pixel_weights(batch_of(masks), weigh=False)
    loss = mask_loss(logits, masks, weights, weights.sum())
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_logits_of_a_coarser_grid_are_enlarged(example):
    _, masks = example
    coarse = torch.randn(3, 4, 2, 2)
    weights = pixel_weights(batch_of(masks), weigh=False)
    enlarged = functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(enlarged, masks.long(), ignore_index=255)
    torch.testing.assert_close(mask_loss(coarse, masks, weights, weights.sum()), expected)


def test_what_is_missing_is_said(example):
    _, masks = example
    with pytest.raises(ValueError, match="reliability"):
        pixel_weights(batch_of(masks), weigh=True)
    with pytest.raises(ValueError, match="needs masks"):
        pixel_weights(Batch(**{**vars(batch_of(masks)), "masks": None}), weigh=False)
