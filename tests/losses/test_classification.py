"""Image classification loss."""

from __future__ import annotations

import math

import pytest
import torch

from cosa_dist.losses.objective import classification_loss


def test_reference_numbers(golden):
    data = golden("cls_loss")
    logits = torch.from_numpy(data["in_x"]).requires_grad_()
    loss = classification_loss(logits, torch.from_numpy(data["in_label"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(data["out"]))
    torch.testing.assert_close(logits.grad, torch.from_numpy(data["grad_x"]))


def test_by_hand():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-1.0))) / 2
    assert classification_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_float32_under_autocast():
    logits, labels = torch.tensor([[1.2345678, -0.3]]), torch.tensor([[1.0, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = classification_loss(logits, labels)
    assert reduced.dtype == torch.float32
    assert reduced == classification_loss(logits, labels)
