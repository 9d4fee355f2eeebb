"""Pixel-adaptive refinement (PAR): maps follow the edges of the image they belong to.

Each pixel becomes, ten times over, a weighted sum of 48 neighbours: eight directions at six
distances. A neighbour weighs by its likeness in colour, measured in units of the colours' local
spread, and a little by its nearness (Ru et al., "Learning Affinity from Attention", 2022; also used
by ToCo). The weights depend on the image alone, so they are computed once for all maps and
iterations, and an iteration is one weighted sum of gathered rows over all pixels (`embedding_bag`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_LEAST_SPREAD = 1e-8


@dataclass(frozen=True)
class PixelAdaptiveSettings:
    """Neighbourhood, kernel and length of the refinement; the defaults are the published ones.

    Attributes:
        dilations: distances in pixels at which the eight neighbours are taken.
        iterations: how often each map is replaced by its weighted sums.
        sharpness: differences are divided by this times their local standard deviation.
        position_weight: share of the position kernel beside the colour kernel's 1.
    """

    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    iterations: int = 10
    sharpness: float = 0.3
    position_weight: float = 0.01

    def __post_init__(self) -> None:
        """Refuse settings that cannot be computed.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be one or more distances of at least 1, not {self.dilations}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")
        if not self.sharpness > 0:
            raise ValueError(f"sharpness must be above 0, not {self.sharpness}")
        if not self.position_weight >= 0:
            raise ValueError(f"position_weight must be at least 0, not {self.position_weight}")


@torch.no_grad()
def pixel_adaptive(images: Tensor, maps: Tensor, settings: PixelAdaptiveSettings | None = None) -> Tensor:
    """Refine maps by their images; no gradient flows through.

    The weights of a pixel sum to 1 + `position_weight`, as published, so each iteration also scales
    the maps by that factor: compare maps with each other, not with a constant.

    Args:
        images: `[B, 3, H, W]` colours, any range (only their relation to the local spread counts).
        maps: `[B, K, H, W]` of the images' size, taken as float32.
        settings: neighbourhood, kernel and iterations; the published ones if left out.

    Returns:
        `[B, K, H, W]` float32.

    Raises:
        ValueError: Where batch or size of maps and images differ.
    """
    settings = settings or PixelAdaptiveSettings()
    if maps.dim() != 4 or images.dim() != 4 or maps.shape[0] != len(images):
        raise ValueError(f"maps {list(maps.shape)} must be [B, K, H, W] for images {list(images.shape)}")
    if maps.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"maps {list(maps.shape)} must have the size of images {list(images.shape)}: resize one first"
        )
    batch, planes, height, width = maps.shape
    neighbours = neighbour_indices(height, width, settings.dilations, maps.device)
    weights = neighbour_weights(images, neighbours, settings).view(-1, neighbours.shape[1])
    starts = torch.arange(batch, dtype=neighbours.dtype, device=maps.device) * (height * width)
    rows = (neighbours + starts[:, None, None]).view(-1, neighbours.shape[1])
    table = maps.detach().float().permute(0, 2, 3, 1).reshape(-1, planes)
    with torch.autocast(maps.device.type, enabled=False):
        for _ in range(settings.iterations):
            table = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    return table.view(batch, height, width, planes).permute(0, 3, 1, 2).contiguous()


def neighbour_indices(height: int, width: int, dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major index of every pixel's neighbours; outside the image the nearest pixel inside counts.

    Args:
        height: Rows.
        width: Columns.
        dilations: Distances in pixels.
        device: Where to make them.

    Returns:
        `[H * W, 8 * len(dilations)]` int32, the eight directions of the first distance first.
    """
    step = _offsets(dilations, device)
    y = (torch.arange(height, device=device)[:, None] + step[:, 0]).clamp_(0, height - 1).int()
    x = (torch.arange(width, device=device)[:, None] + step[:, 1]).clamp_(0, width - 1).int()
    return (y[:, None] * width + x).view(height * width, -1)


def neighbour_weights(images: Tensor, neighbours: Tensor, settings: PixelAdaptiveSettings) -> Tensor:
    """Weights `softmax(mean_c -(dI / (s std))^2) + w softmax(-(dp / (s std_p))^2)` of the neighbours.

    The differences are those from the pixel to each of its n neighbours, in colour channel and in
    position (paper); their standard deviations (unbiased) are taken over the n neighbours.

    Args:
        images: `[B, C, H, W]`.
        neighbours: `[H * W, n]` as from `neighbour_indices`.
        settings: sharpness s and position weight w.

    Returns:
        `[B, H * W, n]` float32, which sum to 1 + w over n.
    """
    colours = images.detach().float().flatten(2)
    batch, channels, _ = colours.shape
    exponent = colours.new_zeros(batch, *neighbours.shape)
    for channel in range(channels):  # one at a time: a third of the memory
        centre = colours[:, channel, :, None]
        around = colours[:, channel].index_select(1, neighbours.flatten()).view_as(exponent)
        spread = around.std(-1, keepdim=True).add_(_LEAST_SPREAD).mul_(settings.sharpness)
        exponent -= around.sub_(centre).div_(spread).square_()
    weights = exponent.div_(channels).softmax(-1)
    distance = _offsets(settings.dilations, images.device).float().norm(dim=1)
    spread = distance.std() + _LEAST_SPREAD
    nearness = -(distance / (settings.sharpness * spread)).square()
    return weights.add_(settings.position_weight * nearness.softmax(-1))


def _offsets(dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """Offsets (y, x) of the neighbours, `[8 * len(dilations), 2]` int64."""
    directions = torch.tensor(_DIRECTIONS, device=device)
    return torch.cat([directions * dilation for dilation in dilations])
