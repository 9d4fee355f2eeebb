"""Plain formulations of the assignment pass and of the pseudo-labels: every class at full resolution.

The released code's way: all maps of all scales are enlarged and kept, absent classes are left out at the
end, and the segmentation pseudo-label is a softmax over the whole crop of which the CAM's grid reads little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.model.network import NetworkOutput

ABSENT = -1e5
IGNORE = 255


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _views(maps: Tensor, size: tuple[int, int], flip: bool) -> Tensor:
    """Enlarged maps of the image and of its mirror image, turned back: `[1 or 2, B, C, H, W]`."""
    maps = _resized(maps.float(), size)
    if not flip:
        return maps[None]
    plain, mirrored = maps.chunk(2)
    return torch.stack([plain, mirrored.flip(-1)])


def _stretched(cams: list[Tensor]) -> Tensor:
    """Sum over the scales, stretched to [0, 1] per image and class."""
    total = torch.stack(cams).sum(0)
    total = total - total.amin((-2, -1), keepdim=True)
    return total / (total.amax((-2, -1), keepdim=True) + 1e-5)


@torch.no_grad()
def plain_multi_scale(
    network: Callable[[Tensor], NetworkOutput],
    images: Tensor,
    scales: Sequence[float],
    aux_cam_last_scale_only: bool = False,
    flip: bool = True,
) -> MultiScaleOutput:
    """The multi-scale pass (released code, where it always mirrors); all classes, no label filter.

    Args:
        network: maps `[B, 3, H, W]` to a `NetworkOutput`.
        images: `[B, 3, H, W]` normalised.
        scales: relative sizes.
        aux_cam_last_scale_only: keep the last scale's auxiliary CAM only.
        flip: whether each scale also sees the mirror image.
    """
    size = (images.shape[-2], images.shape[-1])
    cams: list[Tensor] = []
    aux_cams: list[Tensor] = []
    segmentations: list[Tensor] = []
    logits: list[Tensor] = []
    aux_logits: list[Tensor] = []
    for scale in scales:
        scaled = _resized(images, (int(scale * size[0]), int(scale * size[1])))
        output = network(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled)
        cams.append(_views(output.cam, size, flip).amax(0).relu())
        aux_cams.append(_views(output.aux_cam, size, flip).amax(0).relu())
        segmentations.append(_views(output.segmentation, size, flip).sum(0))
        logits.append(output.logits.float().unflatten(0, (-1, len(images))).mean(0))
        aux_logits.append(output.aux_logits.float().unflatten(0, (-1, len(images))).mean(0))
    return MultiScaleOutput(
        cam=_stretched(cams),
        aux_cam=_stretched(aux_cams[-1:] if aux_cam_last_scale_only else aux_cams),
        segmentation=torch.stack(segmentations).sum(0),
        logits=torch.stack(logits).mean(0),
        aux_logits=torch.stack(aux_logits).mean(0),
    )


@torch.no_grad()
def plain_cam_pseudo_label(
    cam: Tensor, labels: Tensor, boxes: Tensor, low: float, high: float, downscale: int = 2
) -> Tensor:
    """CAM pseudo-label with a pair of thresholds (released code), one image at a time, all planes resized.

    Args:
        cam: `[B, C, H, W]` normalised CAMs.
        labels: `[B, C]` multi-hot image labels.
        boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        low: height of the low background plane.
        high: height of the high background plane.
        downscale: the planes compete at the size divided by this.

    Returns:
        `[B, H, W]` int64: 0 background, 1..C classes, 255 ignore.
    """
    size = (cam.shape[-2], cam.shape[-1])
    small = (size[0] // downscale, size[1] // downscale)
    result = torch.full((len(cam), *size), IGNORE, dtype=torch.int64, device=cam.device)
    allowed = cam * labels[:, :, None, None]
    winners = {}
    for height in (high, low):
        background = torch.full_like(cam[:, :1], height)
        winners[height] = _resized(torch.cat([background, allowed], 1).float(), small)
    for image, (top, bottom, left, right) in enumerate(boxes.tolist()):
        keys = torch.cat([labels.new_zeros(1), labels[image].nonzero()[:, 0] + 1]).long()
        confident, lenient = (
            keys[_resized(winners[height][image, keys][None].softmax(1), size)[0].argmax(0)]
            for height in (high, low)
        )
        label = torch.full_like(confident, IGNORE)
        label[(confident == 0) & (lenient == 0)] = 0
        label = torch.where(confident > 0, confident, label)
        result[image, top:bottom, left:right] = label[top:bottom, left:right]
    return result


@torch.no_grad()
def plain_segmentation_pseudo_label(
    segmentation: Tensor, labels: Tensor, cam_size: tuple[int, int], temperature: float = 0.01
) -> Tensor:
    """Sharp softmax of all classes of every pixel, then resized to the CAM's grid (released code).

    Args:
        segmentation: `[B, C + 1, H, W]` summed logits, background first.
        labels: `[B, C]` multi-hot image labels.
        cam_size: height and width of the grid.
        temperature: of the softmax.

    Returns:
        `[B, C, h, w]` foreground probabilities.
    """
    present = torch.cat([torch.ones_like(labels[:, :1]), labels], 1)[:, :, None, None]
    filtered = torch.where(present > 0, segmentation, torch.full_like(segmentation, ABSENT))
    return _resized((filtered / temperature).softmax(1)[:, 1:], cam_size)
