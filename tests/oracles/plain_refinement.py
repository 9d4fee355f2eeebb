"""Plain formulations of PAR and of the dense CRF: image by image, neighbour by neighbour, plane by plane."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cosa_dist.config.schema import CrfConfig
from tests.oracles.plain_lattice import Floats, PlainLattice


def _shifted(planes: Tensor, down: int, right: int) -> Tensor:
    """`planes[..., y + down, x + right]`; outside, the nearest pixel inside counts."""
    height, width = planes.shape[-2:]
    rows = (torch.arange(height, device=planes.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=planes.device) + right).clamp(0, width - 1)
    return planes[..., rows, :][..., columns]


@torch.no_grad()
def plain_pixel_adaptive(
    images: Tensor,
    maps: Tensor,
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    sharpness: float = 0.3,
    position_weight: float = 0.01,
) -> Tensor:
    """Pixel-adaptive refinement (paper of `lattice.pixel_adaptive`), one image after another.

    Images are `[B, 3, H, W]`, maps `[B, K, H, W]`.
    """
    offsets = [
        (distance * down, distance * right)
        for distance in dilations
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if down or right
    ]
    distances = torch.tensor(offsets, dtype=torch.float32, device=maps.device).norm(dim=1)
    nearness = (-((distances / (sharpness * (distances.std() + 1e-8))) ** 2)).softmax(0)
    refined = []
    for image, planes in zip(images.float(), maps.float(), strict=True):
        around = torch.stack([_shifted(image, *offset) for offset in offsets])
        spread = around.std(0) + 1e-8
        likeness = -(((around - image) / (sharpness * spread)) ** 2).mean(1)
        weights = likeness.softmax(0) + position_weight * nearness[:, None, None]
        for _ in range(iterations):
            neighbours = torch.stack([_shifted(planes, *offset) for offset in offsets])
            planes = (neighbours * weights[:, None]).sum(0)
        refined.append(planes)
    return torch.stack(refined)


def _normalised_kernel(features: Floats) -> Callable[[Floats], Floats]:
    """`D^-1/2 G D^-1/2` of one plane `[N]`."""
    lattice = PlainLattice(features)
    root = np.sqrt(lattice.filter(np.ones(len(features))))
    return lambda values: lattice.filter(values / root) / root


@torch.no_grad()
def plain_dense_crf(images: Tensor, probabilities: Tensor, settings: CrfConfig) -> Tensor:
    """Mean field as the paper writes it (Krähenbühl and Koltun, 2011), one image, one class at a time.

    Args:
        images: `[B, 3, H, W]` colours in 0..255.
        probabilities: `[B, K, H, W]`.
        settings: kernels and iterations.
    """
    height, width = images.shape[-2:]
    rows, columns = np.mgrid[0:height, 0:width]
    position = np.stack([columns.reshape(-1), rows.reshape(-1)], 1).astype(np.float64)
    refined = []
    for image, planes in zip(images, probabilities, strict=True):
        colour = image.double().cpu().numpy().reshape(3, -1).T
        place = position / settings.bilateral_sigma_xy
        features = np.concatenate([place, colour / settings.bilateral_sigma_rgb], 1)
        kernels = (
            (settings.position_weight, _normalised_kernel(position / settings.position_sigma)),
            (settings.bilateral_weight, _normalised_kernel(features)),
        )
        unary = planes.double().flatten(1).clamp(min=1e-5).log()
        beliefs = unary.softmax(0)
        for _ in range(settings.iterations):
            energy = unary.clone()
            for index, belief in enumerate(beliefs.cpu().numpy()):
                for weight, kernel in kernels:
                    energy[index] += weight * torch.from_numpy(kernel(belief)).to(energy)
            beliefs = energy.softmax(0)
        refined.append(beliefs.float().reshape(planes.shape))
    return torch.stack(refined)
