"""Pixel-adaptive refinement (PAR): maps follow the edges of the image they belong to.

Each pixel becomes, ten times over, a weighted sum of 48 neighbours, in eight directions at six distances,
which weigh by their likeness in colour, in units of the colours' local spread, and a little by their nearness
(Ru et al., "Learning Affinity from Attention", 2022; also used by ToCo). The weights depend on the image
alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_LEAST_SPREAD = 1e-8


@torch.no_grad()
def pixel_adaptive(
    images: Tensor,
    maps: Tensor,
    *,
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    sharpness: float = 0.3,
    position_weight: float = 0.01,
) -> Tensor:
    """Refine maps `[B, K, H, W]` by `[B, 3, H, W]` colours of any range: float32, without gradient.

    The defaults are the published ones. The weights of a pixel sum to 1 + `position_weight`, as published, so
    each iteration also scales the maps by that factor: compare maps with each other, not with a constant.
    """
    if maps.dim() != 4 or images.dim() != 4 or maps.shape[0] != len(images):
        raise ValueError(f"maps {list(maps.shape)} must be [B, K, H, W] for images {list(images.shape)}")
    if maps.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"maps {list(maps.shape)} must have the size of images {list(images.shape)}: resize one first"
        )
    batch, planes, height, width = maps.shape
    steps = torch.tensor([[d * y, d * x] for d in dilations for y, x in _DIRECTIONS])
    steps = steps.to(maps.device, non_blocking=True)
    neighbours = neighbour_indices(height, width, steps)
    weights = _neighbour_weights(images, neighbours, steps, sharpness, position_weight)
    starts = torch.arange(batch, dtype=neighbours.dtype, device=maps.device) * (height * width)
    rows = (neighbours + starts[:, None, None]).view(-1, len(steps))
    table = maps.detach().float().permute(0, 2, 3, 1).reshape(-1, planes)
    with torch.autocast(maps.device.type, enabled=False):
        for _ in range(iterations):
            table = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.view(-1, len(steps)))
    return table.view(batch, height, width, planes).permute(0, 3, 1, 2).contiguous()


def neighbour_indices(height: int, width: int, steps: Tensor) -> Tensor:
    """Row-major index `[H * W, n]` int32 of every pixel's neighbours at the offsets (y, x) `[n, 2]`.

    Outside the image the nearest pixel inside counts.
    """
    y = (torch.arange(height, device=steps.device)[:, None] + steps[:, 0]).clamp_(0, height - 1).int()
    x = (torch.arange(width, device=steps.device)[:, None] + steps[:, 1]).clamp_(0, width - 1).int()
    return (y[:, None] * width + x).view(height * width, -1)


def _neighbour_weights(
    images: Tensor, neighbours: Tensor, steps: Tensor, sharpness: float, position_weight: float
) -> Tensor:
    """Weights `softmax(mean_c -(dI / (s std))^2) + w softmax(-(dp / (s std_p))^2)`, `[B, H * W, n]` float32.

    The differences are those from the pixel to each of its n neighbours, in colour channel and in position
    (paper); their standard deviations (unbiased) are taken over the n neighbours.
    """
    colours = images.detach().float().flatten(2)
    batch, channels, _ = colours.shape
    exponent = colours.new_zeros(batch, *neighbours.shape)
    for channel in range(channels):  # one at a time: a third of the memory
        centre = colours[:, channel, :, None]
        around = colours[:, channel].index_select(1, neighbours.flatten()).view_as(exponent)
        spread = around.std(-1, keepdim=True).add_(_LEAST_SPREAD).mul_(sharpness)
        exponent -= around.sub_(centre).div_(spread).square_()
    weights = exponent.div_(channels).softmax(-1)
    distance = steps.float().norm(dim=1)
    nearness = -(distance / (sharpness * (distance.std() + _LEAST_SPREAD))).square()
    return weights.add_(position_weight * nearness.softmax(-1))
