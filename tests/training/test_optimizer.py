"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosa_dist.config.method import OptimizerConfig
from cosa_dist.training.optimizer import (
    blocks_behind,
    build_optimizer,
    fill_missing_gradients,
    learning_rate_factor,
    limit_gradients,
    set_learning_rate,
)
from tests.model.test_network_golden import tiny_network
from tests.model.tiny_encoders import tiny_network as tiny_encoder


def test_the_schedule_equals_the_released_one(golden):
    expected = golden("poly_warmup_adamw_lr")["out_lr"]
    config = OptimizerConfig(learning_rate=6e-5, warmup_steps=50, warmup_ratio=1e-6, power=0.9)
    optimizer = build_optimizer(tiny_network(-2), config)
    for step in range(200):
        set_learning_rate(optimizer, learning_rate_factor(step, 200, config))
        rates = [group["lr"] for group in optimizer.param_groups]
        np.testing.assert_allclose(rates, expected[step], rtol=1e-9, err_msg=f"step {step}")


def test_hand_computed_points_of_the_schedule():
    config = OptimizerConfig(warmup_steps=10, warmup_ratio=0.0, power=1.0)
    assert learning_rate_factor(0, 100, config) == 0.0
    assert learning_rate_factor(5, 100, config) == pytest.approx(0.5)
    assert learning_rate_factor(10, 100, config) == pytest.approx(0.9)
    assert learning_rate_factor(75, 100, config) == pytest.approx(0.25)
    assert learning_rate_factor(100, 100, config) == 0.0


def test_every_trained_parameter_is_in_exactly_one_group():
    network = tiny_network(-2)
    groups = build_optimizer(network, OptimizerConfig()).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in network.parameters() if p.requires_grad}
    sizes = {group["name"]: len(group["params"]) for group in groups}
    assert sizes["classifiers"] == 2
    assert sizes["decoder"] == 3
    assert sizes["norm"] == 4 * 4 + 2


def test_zero_gradients_let_weight_decay_act():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    fill_missing_gradients(optimizer)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.95))


@pytest.mark.parametrize(("most", "factor"), [(0.0, 1.0), (20.0, 1.0), (1.3, 0.1)])
def test_the_norm_is_that_of_all_gradients_and_only_larger_ones_are_scaled_down(most, factor):
    one, other, idle = (torch.nn.Parameter(torch.zeros(size)) for size in (2, 1, 3))
    one.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other, idle]}], lr=1.0)
    assert limit_gradients(optimizer, most).item() == 13.0
    torch.testing.assert_close(one.grad, factor * torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(other.grad, factor * torch.tensor([12.0]))
    assert idle.grad is None


def test_each_block_learns_at_a_fraction_of_the_next_ones_rate():
    network = tiny_encoder("vit")  # three blocks
    config = OptimizerConfig(learning_rate=8.0, head_factor=10, layer_decay=0.5)
    groups = build_optimizer(network, config).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {names[id(p)]: group["peak"] for group in groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {
        "backbone.model.cls_token": 1.0,
        "backbone.model.patch_embed.proj.weight": 1.0,
        "backbone.model.blocks.0.norm1.weight": 2.0,
        "backbone.model.blocks.0.attn.qkv.weight": 2.0,
        "backbone.model.blocks.1.mlp.fc1.bias": 4.0,
        "backbone.model.blocks.2.attn.proj.weight": 8.0,
        "backbone.model.norm.weight": 8.0,
        "classifier.weight": 80.0,
        "decoder.conv6.weight": 80.0,
    }
    assert {name: rates[name] for name in expected} == expected
    assert groups[0]["peak"] == 8.0  # what the log shows


def test_layers_of_a_swin_and_of_rotary_embeddings_by_hand():
    swin = blocks_behind(tiny_encoder("swin"))
    assert swin["backbone.model.patch_embed.proj.weight"] == 8
    assert swin["backbone.model.layers.0.blocks.0.attn.qkv.weight"] == 7
    assert swin["backbone.model.layers.0.blocks.1.attn.qkv.weight"] == 6
    assert swin["backbone.model.layers.1.downsample.reduction.weight"] == 5
    assert swin["backbone.model.layers.1.blocks.0.attn.qkv.weight"] == 5
    assert swin["backbone.model.layers.3.blocks.1.mlp.fc2.weight"] == swin["backbone.model.norm.weight"] == 0
    eva = blocks_behind(tiny_encoder("eva with mixed rotary embeddings"))
    assert eva["backbone.model.rope.freqs"] == eva["backbone.model.patch_embed.proj.weight"] == 3
    assert {value for name, value in eva.items() if "blocks.0." in name} == {2}
    assert blocks_behind(tiny_encoder("vit of clip"))["backbone.model.norm_pre.weight"] == 3
    assert not any(name.startswith(("classifier", "decoder")) for name in swin)


def test_at_the_same_rate_the_groups_are_those_of_the_released_code():
    names = [group["name"] for group in build_optimizer(tiny_network(-2), OptimizerConfig()).param_groups]
    assert names == ["encoder", "norm", "classifiers", "decoder"]
