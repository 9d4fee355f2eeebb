"""What the assignment network would tell the online network about one whole image, for pictures.

The same multi-scale pass, thresholds and pseudo-labels as in training, but on an evaluation's square image
with its own tags, and brought back to the image's size. Reliability weights are always made, so that a
picture shows where the labels are uncertain even if the losses do not use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.assignment.inference import multi_scale
from cosa_dist.assignment.pseudo_labels import Assignment, make_assignment
from cosa_dist.assignment.threshold import Thresholds
from cosa_dist.config.method import AssignmentConfig
from cosa_dist.evaluation.evaluator import resize_map, square_image

if TYPE_CHECKING:
    from cosa_dist.data.reading.loader import EvalSample


@dataclass(frozen=True)
class Labeller:
    """An assignment network and how it labels."""

    network: nn.Module
    """in evaluation mode while it labels"""
    stride: int
    """pixels of the image to one of the CAM's grid"""
    thresholds: Thresholds
    """of both CAMs"""
    config: AssignmentConfig
    """of the pass and the pseudo-labels; `reliability` says whether the losses use the weights"""


@dataclass(frozen=True)
class ImageLabels:
    """CAMs and pseudo-labels of one image, `[H, W]` each."""

    cam: Tensor
    """float32 strongest activation of a tagged class in 0..1"""
    aux_cam: Tensor
    """the same of the auxiliary CAM"""
    cam_label: Tensor
    """int64 CAM pseudo-label (CPL): 0 background, 1..C, 255 ignore"""
    segmentation_label: Tensor
    """int64 most probable class of the segmentation pseudo-label (SPL): 0 background, 1..C"""
    weight: Tensor
    """float32 reliability of the CAM pseudo-label, mean 1 over its foreground and over its background"""


def label_image(labeller: Labeller, sample: EvalSample, size: int, device: torch.device) -> ImageLabels:
    """Label one image by its own tags.

    Args:
        labeller: the assignment network and its settings.
        sample: an image with tags; a mask is not read.
        size: side in pixels of the square that the network sees.
        device: where the network is.

    Returns:
        Maps of the image's own size, on `device`.
    """
    image, tags = sample.image.to(device), sample.labels[None].to(device)
    seen = multi_scale(
        labeller.network,
        square_image(image, size)[None],
        labeller.config.scales,
        flip=labeller.config.flip,
        aux_cam_last_scale_only=labeller.config.aux_cam_last_scale_only,
        labels=tags,
    )
    grid = size // labeller.stride
    whole = torch.tensor([[0, size, 0, size]], device=device)
    config = labeller.config.model_copy(update={"reliability": True})
    assignment = make_assignment(seen, tags, whole, labeller.thresholds, (grid, grid), config)
    shape = (image.shape[-2], image.shape[-1])
    return ImageLabels(
        cam=resize_map(seen.cam[0].amax(0, keepdim=True), shape)[0],
        aux_cam=resize_map(seen.aux_cam[0].amax(0, keepdim=True), shape)[0],
        cam_label=_nearest(assignment.cam_pseudo_label, shape).long(),
        segmentation_label=_nearest(_most_probable(assignment.segmentation_pseudo_label), shape).long(),
        weight=_nearest(_normalised_weight(assignment), shape),
    )


def _most_probable(foreground: Tensor) -> Tensor:
    """Class `[B, h, w]` of foreground probabilities `[B, C, h, w]`, whose rest is the background's."""
    background = 1 - foreground.sum(1, keepdim=True)
    return torch.cat([background, foreground], 1).argmax(1)


def _normalised_weight(assignment: Assignment) -> Tensor:
    """Weights `[B, H, W]` with mean 1 over the foreground and over the background, as the losses use them."""
    label, weight = assignment.cam_pseudo_label, assignment.reliability
    assert weight is not None
    foreground = (label > 0) & (weight > 0)
    result = torch.zeros_like(weight)
    for part in (foreground, label == 0):
        result[part] = weight[part] / weight[part].mean()
    return result


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """One image's plane `[1, h, w]`, resized to `size` by the nearest pixel: `[H, W]` float32."""
    return functional.interpolate(maps[None].float(), size=size, mode="nearest-exact")[0, 0]
