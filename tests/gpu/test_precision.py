"""Number formats: heads in float32 whatever the setting, float32 without TF32, losses in bf16."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import nn

from cosa_dist.benchmark.gpu import LOSSES_APART, fresh, with_training
from cosa_dist.model.network import CamClassifier, LargeFovDecoder
from cosa_dist.training.state import set_arithmetic


def relative_error(found, exact):
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("matmul", ["highest", "high"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_last_layers_of_the_heads_are_float32(device, matmul, autocast):
    set_arithmetic(matmul)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 768, 28, 28, generator=generator).to(device)
    torch.manual_seed(0)
    head = CamClassifier(768, 80).to(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        logits, cam = head(features)
    weight = head.weight.double()
    exact = nn.functional.conv2d(features.double(), weight)
    assert cam.dtype == logits.dtype == torch.float32
    assert relative_error(cam, exact) < 1e-5
    pooled = nn.functional.conv2d(features.double().amax((2, 3), keepdim=True), weight).flatten(1)
    assert relative_error(logits, pooled) < 1e-5


@pytest.mark.parametrize("layer", ["patches", "decoder"])
def test_convolutions_of_highest_precision_are_float32(device, full_config, layer):
    with fresh(full_config(training={"matmul_precision": "highest"}), device):
        torch.manual_seed(0)
        if layer == "patches":
            module, given = nn.Conv2d(3, 768, 16, 16), torch.randn(2, 3, 224, 224)
        else:
            module, given = LargeFovDecoder(256, 21, 128, 5), torch.randn(2, 256, 28, 28)
        with torch.no_grad():
            exact = module.double()(given.double()).to(device)
            found = module.float().to(device)(given.to(device))
    assert relative_error(found, exact) < 1e-5


def some_steps(config, device, step, count):
    with fresh(config, device) as work:
        return [work.take(step, device) for _ in range(count)]


@pytest.mark.parametrize("phase", ["warm-up", "co-training"])
def test_losses_in_bf16_are_near_those_in_float32(device, full_config, phase):
    config = full_config(training={"global_batch_size": 4})
    step = config.losses.warmup_steps if phase == "co-training" else 0
    exact, short = (
        some_steps(with_training(config, precision=precision), device, step, 1)[0]
        for precision in ("fp32", "bf16")
    )
    assert exact["total"] != short["total"]
    for name, value in exact.items():
        assert float(short[name]) == pytest.approx(float(value), rel=LOSSES_APART, abs=1e-9), name


def test_bf16_learns_like_float32(device, full_config):
    config = full_config(training={"global_batch_size": 4}, optimizer={"warmup_steps": 1})
    curves = [
        [
            float(terms["classification"])
            for terms in some_steps(with_training(config, precision=p), device, 1, 60)
        ]
        for p in ("fp32", "bf16")
    ]
    ends = [statistics.mean(curve[-10:]) for curve in curves]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)
    assert ends[0] < 0.9 * curves[0][0]
