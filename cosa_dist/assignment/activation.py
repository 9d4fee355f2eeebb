"""Class activation maps (CAMs) after the network: normalisation, image-label filter, hard masks.

The image labels (tags) of a training image are known, so classes that are absent from the image
must not take part in any assignment. Work at full resolution is therefore done only for the
classes that are present: `present_classes` names them, `gather_classes` picks their planes,
`scatter_classes` puts them back. The other functions are the plain formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

ABSENT_CLASS_LOGIT = -1e5
"""Segmentation logit of a class that is absent from the image (released code)."""


@dataclass(frozen=True)
class PresentClasses:
    """The present classes of each image, padded to the largest number in the batch.

    Padded slots hold some other, absent class of the same image, so that every index may be read
    and written; `valid` tells them apart.
    """

    index: Tensor
    """`[B, P]` int64, ascending among the valid slots."""
    valid: Tensor
    """`[B, P]` bool."""


def present_classes(labels: Tensor) -> PresentClasses:
    """List the classes present in each image (ours).

    Reads one number back from the device (the size `P` of the result), so call it once per batch.

    Args:
        labels: `[B, C]` multi-hot image labels.

    Returns:
        Indexes and validity, `[B, P]` with `1 <= P <= C`; an image without labels has no valid
        slot.

    Raises:
        ValueError: If `labels` is not a matrix with at least one class.
    """
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise ValueError(f"labels must be [B, C] with C >= 1, got shape {tuple(labels.shape)}")
    present = labels > 0.5
    count = max(1, int(present.sum(dim=1).max()) if len(labels) else 1)
    absent_last = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)
    index = absent_last[:, :count]
    return PresentClasses(index, present.gather(1, index))


def gather_classes(planes: Tensor, index: Tensor) -> Tensor:
    """Pick the planes `index` `[B, P]` out of `planes` `[B, C, H, W]`; returns `[B, P, H, W]`."""
    return planes.gather(1, index[:, :, None, None].expand(-1, -1, *planes.shape[-2:]))


def scatter_classes(planes: Tensor, present: PresentClasses, classes: int) -> Tensor:
    """Put `planes` `[B, P, H, W]` of the present classes among zeros, `[B, classes, H, W]`."""
    planes = planes * present.valid[:, :, None, None]
    whole = planes.new_zeros((planes.shape[0], classes, *planes.shape[-2:]))
    return whole.scatter_(1, present.index[:, :, None, None].expand_as(planes), planes)


def min_max_normalise(cam: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Stretch each map to [0, 1): `(x - min) / (max - min + epsilon)` (released code).

    Args:
        cam: `[B, C, H, W]` non-negative activations.
        epsilon: Keeps a constant map at 0 instead of dividing by zero.

    Returns:
        `[B, C, H, W]` float32.
    """
    cam = cam.float()
    shifted = cam - cam.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + epsilon)


def filter_by_labels(cam: Tensor, labels: Tensor) -> Tensor:
    """Set the CAMs of absent classes to zero (paper, released code).

    Args:
        cam: `[B, C, H, W]`.
        labels: `[B, C]` multi-hot image labels.

    Returns:
        `[B, C, H, W]`, same dtype.
    """
    return cam.masked_fill((labels <= 0.5)[:, :, None, None], 0.0)


def filter_logits_by_labels(segmentation: Tensor, labels: Tensor) -> Tensor:
    """Set the segmentation logits of absent classes to -1e5, keep the background (released code).

    Args:
        segmentation: `[B, C + 1, H, W]` logits, background first.
        labels: `[B, C]` multi-hot image labels.

    Returns:
        `[B, C + 1, H, W]`, same dtype.
    """
    absent = functional.pad(labels <= 0.5, (1, 0), value=False)
    return segmentation.masked_fill(absent[:, :, None, None], ABSENT_CLASS_LOGIT)


def maximum_activation(cam: Tensor, labels: Tensor) -> Tensor:
    """Largest CAM value of the present classes at each pixel; 0 without labels (paper).

    Args:
        cam: `[B, C, H, W]` normalised CAMs.
        labels: `[B, C]` multi-hot image labels.

    Returns:
        `[B, H, W]`.
    """
    return filter_by_labels(cam, labels).amax(dim=1)


def cam_to_mask(cam: Tensor, labels: Tensor | None, background_threshold: float = 0.5) -> Tensor:
    """Turn CAMs into a hard mask: class of the maximum above the threshold, else background.

    This is the mask that measures CAM quality (released code), not a training target.

    Args:
        cam: `[B, C, H, W]` normalised CAMs.
        labels: `[B, C]` multi-hot image labels, or None to let all classes compete.
        background_threshold: Background where the maximum is not above this value.

    Returns:
        `[B, H, W]` int64, 0 background, 1..C classes.
    """
    allowed = cam if labels is None else filter_by_labels(cam, labels)
    value, winner = allowed.max(dim=1)
    return torch.where(value > background_threshold, winner + 1, torch.zeros_like(winner))
