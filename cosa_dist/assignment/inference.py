"""The multi-scale pass: a network's output on an image over several sizes and mirror images.

The assignment network labels the weak views with it; evaluator and predictor use it on whole images. Sums run
along with the scales, so that no list of full-size maps is kept. Everything after the network is float32,
whatever precision the network ran in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.activation import (
    PresentClasses,
    gather_classes,
    min_max_normalise,
    present_classes,
    scatter_classes,
)
from cosa_dist.stopwatch import part

if TYPE_CHECKING:
    from cosa_dist.model.network import NetworkOutput


@dataclass(frozen=True)
class MultiScaleOutput:
    """A network's output over all scales and mirror images, at the images' own size."""

    cam: Tensor
    """`[B, C, H, W]` main CAMs in [0, 1]; absent classes are zero if labels were given"""
    aux_cam: Tensor
    """`[B, C, H, W]` auxiliary CAMs, likewise"""
    segmentation: Tensor
    """`[B, C + 1, H, W]` (or a grid's size) segmentation logits, summed over scales and mirror images unless
    another `Merging` was asked for"""
    logits: Tensor
    """`[B, C]` image logits of the main classifier, mean over scales and mirror images"""
    aux_logits: Tensor
    """`[B, C]` image logits of the auxiliary classifier, likewise"""
    present: PresentClasses | None = None
    """the classes of the labels, if labels were given"""


@dataclass(frozen=True)
class Merging:
    """How views are cut from images and their segmentation merged; the defaults are the released code's."""

    how: Literal["sum", "mean", "maximum"] = "sum"
    """over the scales; each gives the sum of its mirror pair, with `mean` the pair's mean"""
    on_grid: bool = False
    """merge at the network's grid of the first scale, instead of at `size`"""
    size: tuple[int, int] | None = None
    """(H, W) of all maps; without it, that of the images"""
    views: tuple[int, int] | None = None
    """(H, W) that the scales multiply; without it, that of the images"""
    patch: int = 1
    """the network takes whole patches: what is left at the right and below is dropped"""


@torch.no_grad()
@part("assignment pass")
def multi_scale(
    network: Callable[[Tensor], NetworkOutput],
    images: Tensor,
    scales: Sequence[float],
    *,
    flip: bool | Literal["scaled"] = True,
    aux_cam_last_scale_only: bool = False,
    labels: Tensor | None = None,
    most_labels: int = 0,
    in_turn: bool = False,
    merging: Merging = Merging(),
) -> MultiScaleOutput:
    """Run `network` over scales (and mirror images, if `flip`) and merge its outputs (released code).

    CAM: enlarged, maximum over the mirror pair, ReLU, sum over scales, [0, 1] per image and class.
    Segmentation: logits enlarged, summed (or see `merging`). Image logits: mean (ours; released: sum).
    `network` is in evaluation mode, `images` `[B, 3, H, W]` are normalised and resized to `int(scale * H)` by
    `int(scale * W)`; mirror images (`scaled`: but at scale 1) join in one batch of `2 B`. With `labels` `[B,
    C]` the CAMs of absent classes are not enlarged and come out as zeros; `most_labels` is the largest number
    of them in an image, if it is known: otherwise the host waits for it. With `aux_cam_last_scale_only`
    (released code, by an oversight) the auxiliary CAM is that of the last scale. A network whose CAMs have no
    classes (a segmenter) gives such maps. With `in_turn` mirror images have their own pass (less memory).
    """
    own, place = _size_of(images), None
    (height, width), size = merging.views or own, merging.size or own
    present = None if labels is None else present_classes(labels, most_labels)
    sums: dict[str, Tensor] = {}
    for position, scale in enumerate(scales):
        view, mirror = (int(scale * height), int(scale * width)), scale != 1 if flip == "scaled" else flip
        output = _at_scale(network, images, view, mirror, in_turn, merging.patch)
        place = place or (_size_of(output.segmentation) if merging.on_grid else size)
        parts = {
            "cam": _pair_maximum(output.cam, size, mirror, present),
            "segmentation": _pair_sum(output.segmentation, place, mirror, merging.how, len(scales)),
            "logits": _pair_mean(output.logits, mirror),
            "aux_logits": _pair_mean(output.aux_logits, mirror),
        }
        if not aux_cam_last_scale_only or position == len(scales) - 1:
            parts["aux_cam"] = _pair_maximum(output.aux_cam, size, mirror, present)
        sums = _joined(sums, parts, merging.how)
        del output, parts
    classes = sums["logits"].shape[1]
    return MultiScaleOutput(
        cam=_finish(sums["cam"], present, classes),
        aux_cam=_finish(sums["aux_cam"], present, classes),
        segmentation=sums["segmentation"],
        logits=sums["logits"] / len(scales),
        aux_logits=sums["aux_logits"] / len(scales),
        present=present,
    )


def _size_of(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _joined(sums: Mapping[str, Tensor], parts: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """What is merged so far with another scale's parts; the segmentation may be a maximum, not a sum."""
    # Not in place: a part may be the network's own output, which two sums may share.
    joins = {"segmentation": torch.maximum} if how == "maximum" else {}
    return {n: joins.get(n, torch.add)(sums[n], p) if n in sums else p for n, p in parts.items()}


def _at_scale(
    network: Callable[[Tensor], NetworkOutput],
    images: Tensor,
    size: tuple[int, int],
    flip: bool,
    in_turn: bool,
    patch: int,
) -> NetworkOutput:
    """The network's output for `images` (and, behind them, their mirror images) resized to `size`."""
    resized = _resize(images, (max(patch, size[0]), max(patch, size[1])))
    height, width = (side - side % patch for side in resized.shape[-2:])
    views = [resized, resized.flip(-1)] if flip else [resized]
    views = [view[..., :height, :width] for view in views]
    if not flip:
        return network(views[0])
    if not in_turn:
        return network(torch.cat(views))
    plain, mirrored = map(network, views)
    return type(plain)(*map(torch.cat, zip(plain, mirrored, strict=True)))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, without antialiasing and without aligned corners; maps may have no channel."""
    if maps.shape[-2:] == size:
        return maps
    if not maps.shape[1]:
        return maps.new_zeros(len(maps), 0, *size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _views(maps: Tensor, flip: bool) -> list[Tensor]:
    """Split `[2 B, C, h, w]` into the maps of the images and, turned back, of their mirror images."""
    plain, *mirrored = maps.float().chunk(2 if flip else 1)
    return [plain, *(view.flip(-1) for view in mirrored)]


def _pair_maximum(cam: Tensor, size: tuple[int, int], flip: bool, present: PresentClasses | None) -> Tensor:
    """Enlarge, maximum over the mirror pair, ReLU: `[2 B, C, h, w]` to `[B, C or P, H, W]`."""
    views = _views(cam, flip)
    if present is not None and cam.shape[1]:
        views = [gather_classes(view, present.index) for view in views]
    # The maximum does not commute with the enlargement, so both views go up; the mirroring does.
    return reduce(torch.maximum, (_resize(view, size) for view in views)).clamp(min=0)


def _pair_sum(maps: Tensor, size: tuple[int, int], flip: bool, how: str, scales: int) -> Tensor:
    """Segmentation of a mirror pair, enlarged: `[2 B, K, h, w]` to `[B, K, H, W]`; its part of a `mean`."""
    views = _views(maps, flip)
    whole = _resize(reduce(torch.add, views), size)
    return whole / (len(views) * scales) if how == "mean" else whole


def _pair_mean(logits: Tensor, flip: bool) -> Tensor:
    """Mean of the mirror pair's image logits: `[2 B, C]` to `[B, C]`."""
    return logits.float().unflatten(0, (2 if flip else 1, -1)).mean(dim=0)


def _finish(cam: Tensor, present: PresentClasses | None, classes: int) -> Tensor:
    """Stretch to [0, 1] and put the present classes back among all of them."""
    if not cam.shape[1]:
        return cam
    cam = min_max_normalise(cam)
    return cam if present is None else scatter_classes(cam, present, classes)
