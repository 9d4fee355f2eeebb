"""Segmentation-to-CAM loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.losses.objective import seg_to_cam_loss


def test_reference_numbers(golden):
    data = golden("cam_loss_v1")
    cam = torch.from_numpy(data["in_x"]).requires_grad_()
    probability = torch.from_numpy(data["in_seg_ps"])[:, 1:]
    target = F.interpolate(probability, size=cam.shape[-2:], mode="bilinear", align_corners=False)
    loss = seg_to_cam_loss(cam, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(data["out"]))
    torch.testing.assert_close(cam.grad, torch.from_numpy(data["grad_x"]))


def test_by_hand():
    cam = torch.tensor([[[[2.0, -3.0]]]])
    target = torch.tensor([[[[0.75, 0.0]]]])
    first = -0.75 * math.log(1 / (1 + math.exp(-2))) - 0.25 * math.log(1 / (1 + math.exp(2)))
    expected = (first + math.log(2)) / 2
    assert seg_to_cam_loss(cam, target).item() == pytest.approx(expected, rel=1e-6)


def test_every_point_weighs_the_same_and_negatives_get_no_gradient():
    cam = torch.tensor([[[[1.0, 1.0]], [[1.0, -1.0]]]], requires_grad=True)
    seg_to_cam_loss(cam, torch.zeros(1, 2, 1, 2)).backward()
    slope = (1 / (1 + math.exp(-1))) / 4
    expected = torch.tensor([[[[slope, slope]], [[slope, 0.0]]]])
    torch.testing.assert_close(cam.grad, expected)


def test_float32_under_autocast():
    cam, target = torch.randn(1, 2, 3, 3), torch.rand(1, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seg_to_cam_loss(cam, target) == seg_to_cam_loss(cam.float(), target)
    assert seg_to_cam_loss(cam.bfloat16(), target).dtype == torch.float32
