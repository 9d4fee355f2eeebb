"""Plain formulations of the losses that the decoder and the CAM learn from (released code).

Cross-entropies over all pixels and classes, one for each part of each pseudo-label; the energy with one
lattice per image, plane after plane, filtered once for the loss and once more for its gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.config.method import EnergyConfig
from tests.oracles.plain_lattice import PlainLattice

IGNORE = 255


def plain_cam_to_seg(logits: Tensor, label: Tensor) -> Tensor:
    """Half the mean cross-entropy of the background pixels and half that of the foreground (released code).

    Args:
        logits: `[B, K, H, W]` at the label's size.
        label: `[B, H, W]` with 255 for ignore.
    """
    total = logits.new_zeros(())
    for part in (label == 0, (label > 0) & (label != IGNORE)):
        chosen = torch.where(part, label, torch.full_like(label, IGNORE))
        loss = functional.cross_entropy(logits, chosen, ignore_index=IGNORE, reduction="none")
        total = total + 0.5 * loss.sum() / (part.sum() + 1e-6)
    return total


def plain_seg_to_cam(cam: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the sigmoid of the ReLU of the CAM, by its definition (released code).

    Args:
        cam: `[B, C, h, w]` raw CAMs.
        target: `[B, C, h, w]` foreground probabilities.
    """
    logits = cam.relu()
    chosen, other = logits.sigmoid().log(), (1 - logits.sigmoid()).log()
    return -(target * chosen + (1 - target) * other).mean()


def plain_bilateral_filter(images: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Bilateral sums of maps `[B, K, H, W]` by their images `[B, 3, H, W]`, plane by plane."""
    height, width = images.shape[-2:]
    rows, columns = np.mgrid[0:height, 0:width]
    filtered = torch.empty_like(values, dtype=torch.float32)
    for index, image in enumerate(images.double().cpu().numpy()):
        place = [columns / sigma_xy, rows / sigma_xy, *(colour / sigma_rgb for colour in image)]
        lattice = PlainLattice(np.stack([axis.reshape(-1) for axis in place], axis=1))
        for plane, numbers in enumerate(values[index].double().cpu().numpy()):
            result = lattice.filter(numbers.reshape(-1)).reshape(height, width)
            filtered[index, plane] = torch.from_numpy(result)
    return filtered


class _PlainEnergy(torch.autograd.Function):
    """The gated energy, filtered once in each direction."""

    @staticmethod
    def forward(
        ctx: Any, masked: Tensor, images: Tensor, gate: Tensor, sigmas: tuple[float, float]
    ) -> Tensor:
        """Return `-sum S (gate W S) / B`."""
        ctx.save_for_backward(masked, images, gate)
        ctx.sigmas = sigmas
        return -(masked * gate * plain_bilateral_filter(images, masked, *sigmas)).sum() / len(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return `-2 gate W S / B`, as released."""
        masked, images, gate = ctx.saved_tensors
        filtered = plain_bilateral_filter(images, masked, *ctx.sigmas)
        return gradients[0] * -2 * gate * filtered / len(images), None, None, None


def plain_energy(
    images: Tensor, logits: Tensor, label: Tensor, boxes: Tensor, kernel: EnergyConfig
) -> Tensor:
    """The dense energy of `losses.energy`, written down step by step (released code).

    Args:
        images: `[B, 3, H, W]` strong view in 0..255.
        logits: `[B, K, H, W]` segmentation logits.
        label: `[B, H, W]` pseudo-label of the main CAM.
        boxes: `[B, 4]` (top, bottom, left, right), half-open.
        kernel: sigmas, scale and weight.
    """
    scale = kernel.scale
    content = torch.zeros_like(label, dtype=torch.float32)[:, None]
    for index, (top, bottom, left, right) in enumerate(boxes.tolist()):
        content[index, :, top:bottom, left:right] = 1.0
    probabilities = functional.interpolate(
        logits.softmax(1), scale_factor=scale, mode="bilinear", align_corners=False
    )
    small = functional.interpolate(images.float(), scale_factor=scale)
    inside = functional.interpolate(content, scale_factor=scale)
    unlabelled = functional.interpolate((label == IGNORE)[:, None].float(), scale_factor=scale)
    masked = probabilities * inside
    gate = (inside - masked.detach().amax(1, keepdim=True)).relu()
    gate = torch.where(unlabelled > 0, torch.ones_like(gate), gate)
    sigmas = (kernel.sigma_rgb, kernel.sigma_xy * scale)
    return kernel.weight * _PlainEnergy.apply(masked, small, gate, sigmas)
