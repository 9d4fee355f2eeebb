"""The multi-scale pass: what a network sees in an image over several sizes and mirror images.

The assignment network labels the weak views with it, and the evaluator and the predictor use it
on whole images. Sums run along with the scales, so that no list of full-size maps is kept, and
with image labels given, CAMs are worked on at full resolution only for the classes that are
present. Everything after the network is float32, whatever precision the network ran in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.activation import (
    PresentClasses,
    gather_classes,
    min_max_normalise,
    present_classes,
    scatter_classes,
)

if TYPE_CHECKING:
    from cosa_dist.model.network import NetworkOutput
from cosa_dist.stopwatch import part


@dataclass(frozen=True)
class MultiScaleOutput:
    """What a network says of a batch over all scales and mirror images, at the images' own size."""

    cam: Tensor
    """`[B, C, H, W]` main CAMs in [0, 1]; absent classes are zero if labels were given."""
    aux_cam: Tensor
    """`[B, C, H, W]` auxiliary CAMs in [0, 1], likewise."""
    segmentation: Tensor
    """`[B, C + 1, H, W]` segmentation logits summed over scales and mirror images."""
    logits: Tensor
    """`[B, C]` image logits of the main classifier, mean over scales and mirror images."""
    aux_logits: Tensor
    """`[B, C]` image logits of the auxiliary classifier, likewise."""
    present: PresentClasses | None = None
    """The classes of the labels, if labels were given."""


@torch.no_grad()
@part("assignment pass")
def multi_scale(
    network: Callable[[Tensor], NetworkOutput],
    images: Tensor,
    scales: Sequence[float],
    *,
    flip: bool = True,
    aux_cam_last_scale_only: bool = False,
    labels: Tensor | None = None,
) -> MultiScaleOutput:
    """Run `network` over scales and mirror images and merge what it says (released code).

    CAM: enlarged, maximum over the mirror pair, ReLU, sum over scales, [0, 1] per image and class.
    Segmentation: logits enlarged, summed. Image logits: mean (ours; released: sum). Eval mode: the caller's.

    Args:
        network: Maps `[B, 3, H, W]` to a `NetworkOutput`; one without CAMs gives maps of no classes.
        images: `[B, 3, H, W]` normalised images.
        scales: Relative sizes; the image is resized to `int(scale * H)` by `int(scale * W)`.
        flip: Whether each scale also sees the mirror image, in one batch of `2 B`.
        aux_cam_last_scale_only: The released code's slip: only the last scale's auxiliary CAM counts.
        labels: `[B, C]` multi-hot image labels. If given, absent classes' CAMs are not enlarged and come out
            as zeros, as `filter_by_labels` would make them.

    Returns:
        The merged maps and logits, float32.

    Raises:
        ValueError: If the images are not `[B, 3, H, W]` or a scale is missing or leaves no pixel.
    """
    _check(images, scales)
    size = (images.shape[-2], images.shape[-1])
    present = None if labels is None else present_classes(labels)
    cam = aux_cam = segmentation = logits = aux_logits = torch.zeros((), device=images.device)
    for position, scale in enumerate(scales):
        output = network(_with_mirror(_resize(images, _scaled(size, scale)), flip))
        cam = _add(cam, _pair_maximum(output.cam, size, flip, present))
        if not aux_cam_last_scale_only or position == len(scales) - 1:
            aux_cam = _add(aux_cam, _pair_maximum(output.aux_cam, size, flip, present))
        segmentation = _add(segmentation, _resize(_pair_sum(output.segmentation, flip), size))
        logits = _add(logits, _pair_mean(output.logits, flip))
        aux_logits = _add(aux_logits, _pair_mean(output.aux_logits, flip))
    classes = logits.shape[1]
    return MultiScaleOutput(
        cam=_finish(cam, present, classes),
        aux_cam=_finish(aux_cam, present, classes),
        segmentation=segmentation,
        logits=logits / len(scales),
        aux_logits=aux_logits / len(scales),
        present=present,
    )


def _check(images: Tensor, scales: Sequence[float]) -> None:
    """Refuse images and scales that cannot be run."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "multi_scale needs normalised float images [B, 3, H, W], "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if len(scales) == 0:
        raise ValueError("multi_scale needs at least one scale, got none")
    for scale in scales:
        if not scale > 0 or min(_scaled((images.shape[-2], images.shape[-1]), scale)) < 1:
            raise ValueError(
                f"scale {scale} leaves no pixel of an image of {tuple(images.shape[-2:])}; "
                "scales must be positive"
            )


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Size in pixels at `scale`, rounded down as the released code does."""
    return int(scale * size[0]), int(scale * size[1])


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize without antialiasing and without aligned corners."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _with_mirror(images: Tensor, flip: bool) -> Tensor:
    """Append the mirror images, `[2 B, 3, H, W]`, if `flip`."""
    return torch.cat([images, images.flip(-1)]) if flip else images


def _pair_maximum(cam: Tensor, size: tuple[int, int], flip: bool, present: PresentClasses | None) -> Tensor:
    """Enlarge, maximum over the mirror pair, ReLU: `[2 B, C, h, w]` to `[B, C or P, H, W]`."""
    views = _unmirrored(cam, flip)
    if not cam.shape[1]:
        return views[0].new_zeros(len(views[0]), 0, *size)
    if present is not None:
        views = [gather_classes(view, present.index) for view in views]
    # The maximum does not commute with the enlargement, so both views go up; the mirroring does.
    merged = _resize(views[0], size)
    for view in views[1:]:
        merged = torch.maximum(merged, _resize(view, size))
    return merged.clamp(min=0)


def _pair_sum(segmentation: Tensor, flip: bool) -> Tensor:
    """Sum of the mirror pair at the low resolution; enlarging is linear, so once is enough."""
    views = _unmirrored(segmentation, flip)
    return views[0] + views[1] if flip else views[0]


def _pair_mean(logits: Tensor, flip: bool) -> Tensor:
    """Mean of the mirror pair's image logits: `[2 B, C]` to `[B, C]`."""
    return logits.float().unflatten(0, (2, -1)).mean(dim=0) if flip else logits.float()


def _unmirrored(maps: Tensor, flip: bool) -> list[Tensor]:
    """Split `[2 B, C, h, w]` into the views of the image and of its mirror image, turned back."""
    if not flip:
        return [maps.float()]
    plain, mirrored = maps.float().chunk(2)
    return [plain, mirrored.flip(-1)]


def _add(total: Tensor, part: Tensor) -> Tensor:
    """Running sum that starts from a 0-dimensional nothing, without a copy of the first part.

    Not in place: the first part may be the network's own output, which two sums may share.
    """
    return part if total.ndim == 0 else total + part


def _finish(cam: Tensor, present: PresentClasses | None, classes: int) -> Tensor:
    """Stretch to [0, 1] and put the present classes back among all of them."""
    if not cam.shape[1]:
        return cam
    cam = min_max_normalise(cam)
    return cam if present is None else scatter_classes(cam, present, classes)
