"""What a network predicts for an image, and the protocols under which that is judged.

A weakly supervised network is often helped at test time by the image's labels. What a number means depends on
whose labels these are, so every score carries the name of its protocol:

* `unfiltered`: no help; the argmax over all classes. The headline number.
* `predicted_labels`: only the classes that the network's own image classifier finds.
* `true_labels`: only the classes of the image's true labels, as the released evaluation does.

The first and the last may also be judged after a dense CRF (`unfiltered_crf`, `true_labels_crf`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.assignment.inference import Merging, MultiScaleOutput, multi_scale
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.reading.views import normalise
from cosa_dist.lattice.dense_crf import DenseCrf

Protocol = Literal["unfiltered", "predicted_labels", "true_labels"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
CRF_PROTOCOLS: tuple[Protocol, ...] = ("unfiltered", "true_labels")


def square_image(image: Tensor, size: int) -> Tensor:
    """Normalise `[3, H, W]` uint8 and resize to `[3, size, size]`, aspect ratio not kept (released code)."""
    return resize_map(normalise(image), (size, size))


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one image's maps `[P, h, w]` to `size` (H, W), bilinear, in fp32 -> `[P, H, W]`."""
    maps = maps.float()
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def multi_scale_forward(
    network: nn.Module,
    images: Sequence[Tensor],
    config: EvaluationConfig,
    labels: Tensor | None = None,
    aux_cam_last_scale_only: bool = False,
    most_labels: int = 0,
) -> list[tuple[MultiScaleOutput, int]]:
    """The multi-scale pass over B images `[3, H, W]` uint8: for each an output and the image's place in it.

    What the protocol makes squares of one size goes through the network in one batch, other images one by
    one. With `labels` `[B, C]`, at most `most_labels` of an image (0: counted), the CAMs of absent classes
    are not computed and are zero.
    """
    every, backbone = range(len(images)), getattr(network, "backbone", None)
    patch = 1 if backbone is None or backbone.any_size or config.in_batches else backbone.stride
    outputs = []
    for group in [every] if config.in_batches else [[index] for index in every]:
        chosen = [normalise(images[index]) for index in group]
        original = (chosen[0].shape[-2], chosen[0].shape[-1])
        resized = resized_size(original, config)
        if config.views_from == "resized":
            chosen = [resize_map(image, resized) for image in chosen]
        size = original if config.merge_at == "image" else resized
        output = multi_scale(
            network,
            torch.stack(chosen),
            config.scales,
            flip=config.flip,
            aux_cam_last_scale_only=aux_cam_last_scale_only,
            labels=None if labels is None else labels[group[0] : group[-1] + 1],
            most_labels=most_labels,
            merging=Merging(config.merging, config.merge_at == "grid", size, resized, patch),
        )
        outputs += [(output, place) for place in range(len(group))]
    return outputs


def resized_size(size: tuple[int, int], config: EvaluationConfig) -> tuple[int, int]:
    """What an image of `size` (H, W) is resized to, by the protocol's geometry."""
    if config.geometry == "longer_side":
        ratio = config.size / max(size)
        return max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio))
    return size if config.geometry == "own" else (config.size, config.size)


def summed_views(config: EvaluationConfig) -> int:
    """How many views the logits of `multi_scale_forward` are the sum of, to make a mean of them."""
    mirrored = [config.flip is True or (config.flip == "scaled" and scale != 1) for scale in config.scales]
    return {"sum": len(mirrored) + sum(mirrored), "maximum": 1 + max(mirrored), "mean": 1}[config.merging]


def kept_classes(logits: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    """Foreground classes that may be predicted under a protocol, bool `[..., C]`; the background always may.

    From the mean image logits `[..., C]` over scales and flips and the true multi-hot labels. The classifier
    finds what has a sigmoid above 0.5, or the top class if none has (ours).
    """
    match protocol:
        case "unfiltered":
            return torch.ones_like(logits, dtype=torch.bool)
        case "predicted_labels":
            found = logits > 0
            top = functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
            return torch.where(found.any(-1, keepdim=True), found, top)
        case "true_labels":
            return labels > 0.5
    raise ValueError(f"no protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")


def chosen_planes(kept: Tensor, count: int | None = None) -> Tensor:
    """The numbers of the kept planes, ascending; without their `count` the host waits for the device."""
    if count is None:
        return kept.nonzero().flatten()
    return kept.to(torch.uint8).argsort(descending=True, stable=True)[:count]


def predict(segmentation: Tensor, kept: Tensor, count: int | None = None) -> Tensor:
    """Class `[H, W]` of each pixel of one image by its logits `[C + 1, H, W]` among the kept classes `[C]`.

    The same as setting the logits of the others to -1e5 before the argmax (released code). `count`: how many
    classes are kept, see `chosen_planes`.
    """
    if count == len(kept):
        return segmentation.max(0).indices  # many times as fast as argmax on the CPU
    with_background = functional.pad(kept, (1, 0), value=True)
    planes = chosen_planes(with_background, None if count is None else count + 1)
    return planes[segmentation[planes].max(0).indices]


def predict_with_crf(segmentation: Tensor, kept: Tensor, crf: DenseCrf) -> Tensor:
    """Class `[H, W]` of each pixel after a dense CRF on the softmax of the logits `[C + 1, H, W]`.

    The classes not kept enter the CRF with the probability 0 (released code).
    """
    planes = functional.pad(kept, (1, 0), value=True)
    filtered = segmentation.float().masked_fill(~planes[:, None, None], -torch.inf)
    return crf.refine(filtered.softmax(0)[None])[0].max(0).indices


def strongest_activation(
    cam: Tensor, kept: Tensor, size: tuple[int, int] | None = None, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Largest value of a CAM `[C, h, w]` over the kept classes at each pixel, and its class in 0..C.

    Both are `[H, W]`, after the kept planes are resized to `size`; without a kept class both are 0.
    """
    planes = chosen_planes(kept, count)
    size = size or (cam.shape[-2], cam.shape[-1])
    if not planes.numel():
        value = cam.new_zeros(size)
        return value, value.long()
    value, index = resize_map(cam[planes], size).max(0)
    return value, planes[index] + 1


def cam_prediction(
    cam: Tensor,
    kept: Tensor,
    background: float,
    size: tuple[int, int] | None = None,
    count: int | None = None,
) -> Tensor:
    """Class `[H, W]` of each pixel by a CAM `[C, h, w]`; at or below `background` it is 0 (released code)."""
    value, strongest = strongest_activation(cam, kept, size, count)
    return strongest.masked_fill(value <= background, 0)
