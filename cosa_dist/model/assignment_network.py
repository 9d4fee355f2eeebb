"""The assignment network: an exact copy of the online network that follows it as a moving average.

It starts as a copy (ours; the released code starts its heads from other random numbers), is never trained
by gradient, and always runs in evaluation mode.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from cosa_dist.stopwatch import part


def copy_network(online: nn.Module) -> nn.Module:
    """Return the assignment network: a deep copy without gradients, in evaluation mode."""
    assignment = copy.deepcopy(online)
    assignment.requires_grad_(False)
    return assignment.eval()


@torch.no_grad()
@part("EMA")
def move_towards(assignment: nn.Module, online: nn.Module, momentum: float) -> None:
    """Update `a = momentum a + (1 - momentum) o` for every parameter; buffers are copied.

    Source: paper and released code (constant momentum, after every optimiser step).
    """
    own = [parameter.data for parameter in assignment.parameters()]
    other = [parameter.data for parameter in online.parameters()]
    torch._foreach_lerp_(own, other, 1.0 - momentum)
    for buffer, source in zip(assignment.buffers(), online.buffers(), strict=True):
        buffer.copy_(source)
