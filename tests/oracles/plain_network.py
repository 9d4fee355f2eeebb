"""Plain formulation of the networks' attention: the softmax of all products, written out.

timm's attention blocks compute `softmax(q k^T) v` with the matrix of all token pairs in memory unless their
`fused_attn` is on; the released code does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def explicit_attention(*networks: nn.Module) -> Iterator[int]:
    """Switch the fused attention of some networks off for a while.

    Yields:
        The number of blocks whose attention is explicit now and was fused before.
    """
    fused = [
        module
        for network in networks
        for module in network.modules()
        if getattr(module, "fused_attn", False) is True
    ]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield len(fused)
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
