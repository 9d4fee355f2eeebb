"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosa_dist.config.method import OptimizerConfig
from cosa_dist.training.optimizer import (
    build_optimizer,
    fill_missing_gradients,
    learning_rate_factor,
    limit_gradients,
    set_learning_rate,
)
from tests.model.test_network_golden import tiny_network


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
