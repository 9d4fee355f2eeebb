"""The heads' last layers stay in float32 under autocast, against the same product in float64."""

from __future__ import annotations

import torch

from cosa_dist.model.network import CamClassifier, LargeFovDecoder


def test_the_cam_of_bf16_features_is_exact_to_float32():
    head = CamClassifier(48, 5)
    features = torch.randn(2, 48, 6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        logits, cam = head(features.bfloat16())
    weight = head.weight.detach().double()[:, :, 0, 0]
    expected = torch.einsum("bdhw,cd->bchw", features.bfloat16().double(), weight)
    assert cam.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(cam.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_the_decoders_last_layer_is_float32_and_learns_under_autocast():
    head = LargeFovDecoder(8, 3, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(torch.randn(2, 8, 5, 5))
    assert found.dtype == torch.float32
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())
