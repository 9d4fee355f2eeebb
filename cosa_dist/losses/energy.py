"""The dense energy of the predicted segmentation (released code; not in the paper's figure).

Pixels that are near each other in position and colour should agree. With the probabilities S, the
bilateral filter W on the permutohedral lattice and a gate g, the loss is E = -(1/B) sum_k S_k . (g
* (W S_k)). The gate is 1 where the pseudo-label is `ignore` and 1 - max_k S_k elsewhere inside the
image content, 0 outside. The gradient is written out, -2 g (W S) / B, as released: it needs no
second filtering, takes the gate as a constant and takes W as symmetric. W carries a gain of about
0.52 against the exact sum of Gaussians, which the weights (1e-7 here, 0.05 in the objective)
assume.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.boxes import inside_boxes
from cosa_dist.data.catalog import IGNORE
from cosa_dist.lattice.bilateral import bilateral_filter


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
        """Return the scalar energy of `[B, K, h, w]` probabilities."""
        masked = probabilities * inside
        gate = F.relu(inside - masked.amax(1, keepdim=True)).masked_fill(unlabelled, 1.0)
        gated = bilateral_filter(images, masked, *sigmas).mul_(gate)
        ctx.save_for_backward(gated.mul(inside).mul_(-2.0 / len(images)))
        return -(masked * gated).sum() / len(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient with respect to the probabilities."""
        (per_probability,) = ctx.saved_tensors
        return per_probability * gradients[0], None, None, None, None


def dense_energy_loss(
    images: Tensor,
    segmentation_logits: Tensor,
    label: Tensor,
    boxes: Tensor,
    *,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    weight: float = 1e-7,
) -> Tensor:
    """Dense energy of the segmentation on the strong view (released code).

    In the released order: logits to the label's size (bilinear), softmax, then all to `scale`: the
    image, the box and the label by nearest neighbour, the probabilities bilinearly.

    Args:
        images: `[B, 3, H, W]` strong view, colours in 0..255 (denormalised).
        segmentation_logits: `[B, K, h, w]` at the network's grid, or `[B, K, H, W]` already
            upsampled.
        label: `[B, H, W]` pseudo-label of the main CAM; 255 is unlabelled.
        boxes: `[B, 4]` (top, bottom, left, right) of the image content, half-open.
        sigma_rgb: Standard deviation of the colour kernel, in grey levels.
        sigma_xy: Standard deviation of the position kernel, in pixels of the full-size crop.
        scale: Factor by which everything is made smaller first, in (0, 1].
        weight: Factor of the result.

    Returns:
        Scalar float32, never positive; its gradient reaches only `segmentation_logits`.

    Raises:
        ValueError: Where shapes do not fit, or `scale` is out of range.
    """
    _check(images, segmentation_logits, label, boxes, scale)
    size = label.shape[-2:]
    with torch.autocast(label.device.type, enabled=False):
        logits = segmentation_logits.float()
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        probabilities = _scaled(logits.softmax(1), scale, "bilinear")
        inside = _scaled(inside_boxes(boxes, (size[0], size[1]))[:, None].float(), scale, "nearest")
        unlabelled = _scaled((label == IGNORE)[:, None].float(), scale, "nearest") > 0
        small = _scaled(images.float(), scale, "nearest")
        sigmas = (sigma_rgb, sigma_xy * scale)
        return weight * _GatedEnergy.apply(probabilities, small, inside, unlabelled, sigmas)


def _scaled(maps: Tensor, scale: float, mode: str) -> Tensor:
    """Resize `[B, *, H, W]` by a factor of at most 1."""
    align = False if mode == "bilinear" else None
    return F.interpolate(
        maps, scale_factor=scale, mode=mode, align_corners=align, recompute_scale_factor=False
    )


def _check(images: Tensor, logits: Tensor, label: Tensor, boxes: Tensor, scale: float) -> None:
    """Refuse shapes that do not fit each other, and a scale out of range."""
    if label.dim() != 3 or len(images) != len(label) or images.shape[2:] != label.shape[1:]:
        raise ValueError(f"label {list(label.shape)} must be [B, H, W] as images {list(images.shape)}")
    if logits.dim() != 4 or len(logits) != len(label) or boxes.shape != (len(label), 4):
        raise ValueError(
            f"segmentation {list(logits.shape)} and boxes {list(boxes.shape)} must be "
            f"[B, K, h, w] and [B, 4] with B = {len(label)}"
        )
    if not 0 < scale <= 1:
        raise ValueError(f"the energy's scale must be in (0, 1], not {scale}")
