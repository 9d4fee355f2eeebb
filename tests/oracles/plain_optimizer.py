"""Plain formulations of the optimiser and of the moving average: one parameter after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def one_by_one(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let an optimiser walk through its parameters in a Python loop for a while."""
    before = [(group, group.get("foreach"), group.get("fused")) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["foreach"], group["fused"] = False, False
    try:
        yield
    finally:
        for group, foreach, fused in before:
            group["foreach"], group["fused"] = foreach, fused


@torch.no_grad()
def plain_move_towards(
    assignment: Iterable[nn.Parameter], online: Iterable[nn.Parameter], momentum: float
) -> None:
    """`a = momentum a + (1 - momentum) o`, parameter by parameter (released code)."""
    for own, other in zip(assignment, online, strict=True):
        own.copy_(momentum * own + (1 - momentum) * other)
