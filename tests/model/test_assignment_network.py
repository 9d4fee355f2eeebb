"""The moving average against its definition."""

from __future__ import annotations

import torch
from torch import nn

from cosa_dist.model.network import copy_network, update_ema


def test_it_starts_as_an_exact_copy_without_gradients():
    online = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assignment = copy_network(online)
    assert not assignment.training
    for own, other in zip(assignment.parameters(), online.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own is not other
        assert not own.requires_grad


def test_one_update_by_hand_and_buffers_are_copied():
    online = nn.BatchNorm1d(2)
    assignment = copy_network(online)
    with torch.no_grad():
        online.weight.fill_(3.0)
        online.running_mean.fill_(7.0)
    update_ema(assignment, online, 0.9)
    torch.testing.assert_close(assignment.weight, torch.full((2,), 0.9 * 1 + 0.1 * 3))
    torch.testing.assert_close(assignment.running_mean, torch.full((2,), 7.0))


def test_frozen_parameters_follow_too():
    online = nn.Linear(2, 1)
    assignment = copy_network(online)
    online.requires_grad_(False)
    online.weight.fill_(1.0)
    update_ema(assignment, online, 0.0)
    assert torch.equal(assignment.weight, online.weight)
