"""The heads' last layers stay in float32 under autocast, against the same product in float64."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.model.network import CamClassifier, LargeFovDecoder, float32_product


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


def test_the_product_of_a_gpu_and_its_gradients_are_those_of_a_convolution():
    drawn = torch.Generator().manual_seed(2)
    weight, maps, gradient = (
        torch.randn(*shape, generator=drawn, dtype=torch.float64)
        for shape in ((5, 7), (3, 7, 11), (3, 5, 11))
    )
    given = [each.clone().requires_grad_() for each in (weight, maps)]
    float32_product(*given).backward(gradient)
    plain = [each.clone().requires_grad_() for each in (weight, maps)]
    expected = torch.nn.functional.conv1d(plain[1], plain[0][:, :, None])
    expected.backward(gradient)
    torch.testing.assert_close(float32_product(*given), expected)
    for one, other in zip(given, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_the_product_of_a_gpu_allows_no_tf32_forward_or_backward(monkeypatch, allowed):
    seen, product = [], torch.bmm

    def watched(*factors):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32))
        return product(*factors)

    monkeypatch.setattr(torch, "bmm", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        weight, maps = torch.rand(2, 3, requires_grad=True), torch.rand(1, 3, 4, requires_grad=True)
        float32_product(weight, maps).sum().backward()
        assert torch.get_float32_matmul_precision() == allowed
        with pytest.raises(RuntimeError):
            float32_product(weight, maps[:, :2])
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen[:3] == [("highest", False)] * 3


def test_the_pooled_maximum_is_that_of_adaptive_pooling():
    head = CamClassifier(6, 2)
    for kind in (torch.float32, torch.bfloat16):
        features = torch.randn(2, 6, 5, 4).relu().to(kind).requires_grad_()
        pooled = torch.nn.functional.adaptive_max_pool2d(features, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
            logits = head(features)[0]
        assert torch.equal(logits, torch.nn.functional.conv2d(pooled.float(), head.weight).flatten(1))
        (expected,) = torch.autograd.grad(pooled.sum(), features)
        (found,) = torch.autograd.grad(features.flatten(2).max(-1).values.sum(), features)
        assert torch.equal(found, expected)
