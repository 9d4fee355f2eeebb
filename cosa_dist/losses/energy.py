"""The dense energy of the predicted segmentation (released code; not in the paper's figure).

Pixels that are near each other in position and colour should agree. With the probabilities S, the bilateral
filter W on the permutohedral lattice and a gate g, the loss is `E = -(1/B) sum_k S_k . (g * (W S_k))`. The
gate is 1 where the pseudo-label is `ignore` and 1 - max_k S_k elsewhere inside the image content, 0 outside.
The gradient is written out, `-2 g (W S) / B`, as released: it needs no second filtering, takes the gate as a
constant and W as symmetric. W carries a gain of about 0.52 against the exact sum of Gaussians, which the
weights (1e-7 here, 0.05 in the objective) assume.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.activation import inside_boxes
from cosa_dist.config.method import EnergyConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.lattice.permutohedral import bilateral_filter
from cosa_dist.stopwatch import part


class _GatedEnergy(torch.autograd.Function):
    """The energy of probabilities, and its gradient from the same filtered maps."""

    @staticmethod
    def forward(
        ctx: Any,
        probabilities: Tensor,
        images: Tensor,
        inside: Tensor,
        unlabelled: Tensor,
        sigmas: tuple[float, float],
    ) -> Tensor:
        masked = probabilities * inside
        gate = F.relu(inside - masked.amax(1, keepdim=True)).masked_fill(unlabelled, 1.0)
        gated = bilateral_filter(images, masked, *sigmas).mul_(gate)
        ctx.save_for_backward(gated.mul(inside).mul_(-2.0 / len(images)))
        return -(masked * gated).sum() / len(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (per_probability,) = ctx.saved_tensors
        return per_probability * gradients[0], None, None, None, None


@part("loss: energy")
def dense_energy_loss(
    images: Tensor, logits: Tensor, label: Tensor, boxes: Tensor, kernel: EnergyConfig
) -> Tensor:
    """Dense energy of the segmentation on the strong view, a float32 scalar, never positive (released code).

    `images` `[B, 3, H, W]` in 0..255, `logits` `[B, K, h, w]` (the gradient reaches only these), `label` `[B,
    H, W]` of the main CAM (255 is unlabelled), half-open `boxes` `[B, 4]`. In the released order: logits to
    the label's size (bilinear), softmax, then all to the kernel's scale: the image, the box and the label by
    nearest neighbour, the probabilities bilinearly.

    Raises:
        ValueError: shapes do not fit.
    """
    if label.shape != (len(images), *images.shape[2:]) or boxes.shape != (len(label), 4):
        raise ValueError(
            f"dense_energy_loss needs images [B, 3, H, W], label [B, H, W] and boxes [B, 4], got "
            f"{list(images.shape)}, {list(label.shape)} and {list(boxes.shape)}"
        )
    size = (label.shape[-2], label.shape[-1])
    with torch.autocast(label.device.type, enabled=False):
        logits = logits.float()
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        probabilities = _scaled(logits.softmax(1), kernel.scale, "bilinear")
        inside = _scaled(inside_boxes(boxes, size)[:, None].float(), kernel.scale, "nearest")
        unlabelled = _scaled((label == IGNORE)[:, None].float(), kernel.scale, "nearest") > 0
        # Bytes stay bytes: the lattice then knows the colours' range without asking the device.
        colours = images if images.dtype == torch.uint8 else images.float()
        small = _scaled(colours, kernel.scale, "nearest")
        sigmas = (kernel.sigma_rgb, kernel.sigma_xy * kernel.scale)
        return kernel.weight * _GatedEnergy.apply(probabilities, small, inside, unlabelled, sigmas)


def _scaled(maps: Tensor, scale: float, mode: str) -> Tensor:
    """Resize `[B, *, H, W]` by a factor of at most 1."""
    align = False if mode == "bilinear" else None
    return F.interpolate(
        maps, scale_factor=scale, mode=mode, align_corners=align, recompute_scale_factor=False
    )
