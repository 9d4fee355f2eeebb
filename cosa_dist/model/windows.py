"""Cut a grid of tokens into shifted windows, for Swin transformers on inputs of any size.

A grid that the window does not divide is padded first and shifted then, and the mask keeps padding, and
tokens that only the shift brought together, from being seen. (timm shifts first: with padding its mask is
then off, and tokens of opposite borders see each other.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """How one grid is cut into windows."""

    grid: Pair
    """h, w in tokens"""
    window: Pair
    """size of a window in tokens; N is its area"""
    shift: Pair
    """how far the windows are shifted, in tokens"""
    padded: Pair
    """the grid with padding at its bottom and right"""
    mask: Tensor | None
    """[windows, N, N] additive: 0 where a token may see another one, -inf else; None: all see all"""

    def split(self, tokens: Tensor) -> Tensor:
        """Cut tokens [B, h, w, D] into windows [B * windows, N, D]."""
        extra = (self.padded[0] - self.grid[0], self.padded[1] - self.grid[1])
        tokens = F.pad(tokens, (0, 0, 0, extra[1], 0, extra[0])) if any(extra) else tokens
        if any(self.shift):
            tokens = torch.roll(tokens, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        return window_partition(tokens.contiguous(), self.window).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """Put windows [B * windows, N, D] back together: [B, h, w, D]."""
        windows = windows.unflatten(1, self.window)
        tokens = window_reverse(windows, self.window, *self.padded)
        if any(self.shift):
            tokens = torch.roll(tokens, self.shift, dims=(1, 2))
        return tokens[:, : self.grid[0], : self.grid[1]]


def lay_windows(grid: Pair, window: Pair, shifted: bool, device: torch.device) -> Windows:
    """Plan the windows of a grid; a side that fits into one window is not shifted (Swin paper).

    Args:
        grid: h, w in tokens.
        window: size of a window.
        shifted: shift by half a window, as every other block does.
        device: where the mask will be.
    """
    height, width = (-(-side // size) * size for side, size in zip(grid, window, strict=True))
    down, right = (
        size // 2 if shifted and side > size else 0 for side, size in zip(grid, window, strict=True)
    )
    mask = None
    if down or right or (height, width) != grid:
        rows = _regions(grid[0], height, down, device)
        columns = _regions(grid[1], width, right, device)
        regions = (3 * rows[:, None] + columns)[None, :, :, None]
        of_window = window_partition(regions, window).flatten(1)
        apart = of_window[:, None, :] != of_window[:, :, None]
        mask = torch.zeros(apart.shape, device=device).masked_fill(apart, float("-inf"))
    return Windows(grid, window, (down, right), (height, width), mask)


def _regions(side: int, padded: int, shift: int, device: torch.device) -> Tensor:
    """Region [padded] of each shifted row: 0 in its place, 1 brought round by the shift, 2 padding."""
    position = torch.arange(padded, device=device)
    original = (position + shift) % padded
    region = (position >= padded - shift).long() if shift else torch.zeros_like(position)
    return region.masked_fill(original >= side, 2)
