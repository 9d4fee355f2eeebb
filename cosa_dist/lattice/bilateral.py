"""Bilateral filtering of maps by the colours and positions of images.

The kernel between two pixels is a Gaussian of their distance in the image (standard deviation `sigma_xy`, in
pixels) times one of their distance in colour (`sigma_rgb`, in grey levels of 0..255).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa_dist.lattice.permutohedral import PermutohedralLattice


def position_features(height: int, width: int, sigma_xy: float, device: torch.device) -> Tensor:
    """Pixel positions (x, y) in units of `sigma_xy`, `[height * width, 2]` float32, row by row."""
    if not sigma_xy > 0:
        raise ValueError(f"sigma_xy must be positive, not {sigma_xy}")
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2) / sigma_xy


def bilateral_features(images: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Features (x, y, red, green, blue) of `[B, 3, H, W]` colours in 0..255, `[B, H * W, 5]` float32."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], not {list(images.shape)}")
    if not sigma_rgb > 0:
        raise ValueError(f"sigma_rgb must be positive, not {sigma_rgb}")
    height, width = images.shape[2:]
    position = position_features(height, width, sigma_xy, images.device)
    colour = images.detach().float().flatten(2).transpose(1, 2) / sigma_rgb
    return torch.cat((position.expand(len(images), -1, -1), colour), dim=-1)


def bilateral_filter(images: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Filter maps `[B, K, H, W]` bilaterally by `[B, 3, H, W]` colours in 0..255 (released code).

    Not normalised (about 0.52 times the exact sum, see `permutohedral`), float32, without gradient.
    """
    if values.dim() != 4 or values.shape[0] != len(images) or values.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"values {list(values.shape)} must have batch and size of images {list(images.shape)}"
        )
    lattice = PermutohedralLattice.build(bilateral_features(images, sigma_rgb, sigma_xy))
    filtered = lattice.filter(values.detach().flatten(2).transpose(1, 2))
    return filtered.transpose(1, 2).reshape(values.shape)
