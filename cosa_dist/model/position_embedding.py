"""Resize a vision transformer's table of absolute positions to another grid of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embedding(
    embedding: Tensor, prefix_tokens: int, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resize bicubically, without antialiasing and without aligned corners (released code).

    Antialiasing, timm's default, moves features by up to 1e-2, and masks with them.

    Args:
        embedding: [1, prefix_tokens + h * w, D].
        prefix_tokens: leading entries that belong to no patch (class, register, distillation tokens).
        old_grid: h, w of the embedding.
        new_grid: h', w' wanted.

    Returns:
        [1, prefix_tokens + h' * w', D]; the embedding itself where the grids are the same.
    """
    if old_grid == new_grid:
        return embedding
    prefix, patches = embedding[:, :prefix_tokens], embedding[:, prefix_tokens:]
    table = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(table.float(), new_grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)
