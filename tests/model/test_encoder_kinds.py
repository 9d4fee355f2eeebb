"""Every kind of encoder through what the method asks of it: sizes, scales, gradients, precision, copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.inference import multi_scale
from cosa_dist.model.network import copy_network, update_ema
from tests.model.tiny_encoders import KINDS, TRANSFORMERS, tiny_network

STRIDES = {kind: 16 if kind in TRANSFORMERS else 32 for kind in KINDS}


def everything(output) -> torch.Tensor:
    return sum(value.float().square().mean() for value in output)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_cover_the_image_at_the_stride_on_one_grid(kind):
    network = tiny_network(kind).eval()
    stride = network.backbone.stride
    assert stride == STRIDES[kind]
    output = network(torch.rand(2, 3, 3 * stride, 5 * stride))
    assert output.cam.shape == output.aux_cam.shape == (2, 3, 3, 5)
    assert output.segmentation.shape == (2, 4, 3, 5)
    assert output.features.shape == (2, network.backbone.channels, 3, 5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TRANSFORMERS])
def test_between_two_sizes_the_input_is_enlarged(kind):
    network = tiny_network(kind).eval()
    images = torch.rand(1, 3, 84, 61)
    output = network(images)
    assert output.cam.shape == output.aux_cam.shape == (1, 3, 3, 2)
    larger = F.interpolate(images, (96, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.cam, network(larger).cam)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_plain_transformer_refuses_sizes_that_its_patch_does_not_divide(kind):
    with pytest.raises(ValueError, match="does not divide an input of 64 x 56"):
        tiny_network(kind)(torch.rand(1, 3, 64, 56))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    network = tiny_network(kind).train()
    everything(network(torch.rand(2, 3, 96, 64))).backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert without == []
    # With layer scales of 1e-5 the gradients are small, but none of these may be exactly zero.
    still = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_float32_and_trains(kind):
    network = tiny_network(kind).eval()
    images = torch.rand(1, 3, 96, 64)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(images)
    for name in ("cam", "aux_cam", "segmentation", "logits"):
        one, other = getattr(exact, name), getattr(rough, name).float()
        scale = one.abs().max().clamp(min=1e-3)
        assert (one - other).abs().max() < 0.1 * scale, name
    everything(rough).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_assignment_copy_follows_and_looks_at_several_scales(kind):
    online = tiny_network(kind)
    assignment = copy_network(online)
    with torch.no_grad():
        online.classifier.weight.add_(1)
    update_ema(assignment, online, 0.0)
    assert all(
        torch.equal(a, o)
        for a, o in zip(assignment.state_dict().values(), online.state_dict().values(), strict=True)
    )
    images = torch.rand(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]])
    with torch.inference_mode():
        seen = multi_scale(assignment, images, (1.0, 0.5, 1.5), labels=labels)
        mirrored = multi_scale(assignment, images.flip(-1), (1.0, 0.5, 1.5), labels=labels)
    assert seen.cam.shape == (2, 3, 64, 64)
    assert not seen.cam[0, 1:].any()
    torch.testing.assert_close(mirrored.segmentation, seen.segmentation.flip(-1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mirrored.cam, seen.cam.flip(-1), rtol=1e-3, atol=1e-3)
    # The scales of the published evaluation give sizes that no stride of 32 divides.
    if kind not in TRANSFORMERS:
        multi_scale(assignment, images, (0.75, 1.25))
    everything(online(images)).backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"), [("vit", "inductor"), ("swin", "aot_eager"), ("convnext", "aot_eager")]
)
def test_a_compiled_network_says_the_same(kind, backend):
    """All are captured, forwards and backwards; the C++ compiler, which takes minutes, is called for one."""
    network = tiny_network(kind).eval()
    compiled = torch.compile(network, backend=backend)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(compiled(images).cam, network(images).cam, rtol=1e-3, atol=1e-4)
    everything(compiled(images)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
