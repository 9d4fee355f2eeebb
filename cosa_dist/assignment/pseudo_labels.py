"""The assignment: the pseudo-labels by which the assignment network teaches the online network.

With a pair of thresholds (released code) a background plane at each of two heights competes with the CAMs of
the present classes, at reduced resolution; where the high plane loses is foreground, where even the low plane
wins is background, the rest is ignored. With a single threshold (paper) the strongest class is compared with
it at each pixel and nothing is left between. Everything outside the valid box is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa_dist.assignment.activation import (
    PresentClasses,
    filter_logits_by_labels,
    gather_classes,
    inside_boxes,
    present_classes,
    strongest_class,
)
from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.mixture import activation_histogram
from cosa_dist.assignment.reliability import ReliablePixels, reliability, reliable_pixels
from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig, SeparationConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.stopwatch import one_thread, part


@dataclass(frozen=True)
class Assignment:
    """The pseudo-labels of one batch; a part that is switched off is None and costs nothing."""

    cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the main CAM: 0 background, 1..C classes, 255 ignore"""
    aux_cam_pseudo_label: Tensor
    """`[B, H, W]` int64 from the auxiliary CAM"""
    segmentation_pseudo_label: Tensor
    """`[B, C, h, w]` foreground probabilities at the CAM's grid"""
    reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the main CAM's label, 0 where it is ignored; None: all equal"""
    aux_reliability: Tensor | None = None
    """`[B, H, W]` float32 weight of the auxiliary CAM's label, likewise"""
    reliable_pixels: ReliablePixels | None = None
    """pixels of the CAM's grid for contrastive separation"""
    histograms: Tensor | None = None
    """`[2, BINS]` int64 activations of the main and the auxiliary CAM for the threshold search"""


@part("pseudo-labels")
def make_assignment(
    output: MultiScaleOutput,
    labels: Tensor,
    boxes: Tensor,
    thresholds: Thresholds,
    cam_size: tuple[int, int],
    config: AssignmentConfig,
    *,
    separation: SeparationConfig | None = None,
    count_activations: bool = False,
) -> Assignment:
    """Turn the assignment network's output on the weak views into pseudo-labels (released code, paper).

    `labels` `[B, C]` are multi-hot, `boxes` `[B, 4]` half-open, `cam_size` is that of the online network's
    CAM. With `separation` the pixels for contrastive separation are chosen, with `count_activations` the
    histograms for the threshold search are made.
    """
    # Tensors made in inference mode cannot be saved for backward, and the losses must save these.
    with torch.inference_mode(False), torch.no_grad():
        present = present_classes(labels) if output.present is None else output.present
        label, weight = _label(output.cam, present, boxes, thresholds.main, config)
        aux_label, aux_weight = _label(output.aux_cam, present, boxes, thresholds.aux, config)
        pixels = histograms = None
        if separation is not None:
            pixels = reliable_pixels(
                output.aux_cam, present, boxes, thresholds.aux, cam_size, config, separation
            )
        if count_activations:
            cams = (output.cam, output.aux_cam)
            histograms = torch.stack([activation_histogram(cam, present, boxes) for cam in cams])
        soft = segmentation_pseudo_label(output.segmentation, labels, cam_size, config.temperature)
        return Assignment(label, aux_label, soft, weight, aux_weight, pixels, histograms)


def _label(
    cam: Tensor, present: PresentClasses, boxes: Tensor, threshold: Threshold, config: AssignmentConfig
) -> tuple[Tensor, Tensor | None]:
    """Pseudo-label `[B, H, W]` of one CAM and, if wanted, its weights."""
    label = cam_pseudo_label(cam, present, boxes, threshold, config.downscale)
    if not config.reliability:
        return label, None
    return label, reliability(strongest_class(cam, present).value, label, threshold, config)


def cam_pseudo_label(
    cam: Tensor, present: PresentClasses, boxes: Tensor, threshold: Threshold, downscale: int
) -> Tensor:
    """Label pixels from normalised CAMs `[B, C, H, W]`: `[B, H, W]` int64, 0 background, 1..C, 255 ignore.

    The planes of a pair compete at `H // downscale` by `W // downscale`.
    """
    height, width = cam.shape[-2:]
    inside = inside_boxes(boxes, (height, width))
    if threshold.single:
        return threshold.label(strongest_class(cam, present), inside)
    planes = F.interpolate(
        gather_classes(cam, present.index).float(),
        size=(height // downscale, width // downscale),
        mode="bilinear",
        align_corners=False,
    )
    planes = planes.masked_fill(~present.valid[:, :, None, None], float("-inf"))
    confident = _winner(planes, threshold.high, present, (height, width))
    lenient = _winner(planes, threshold.low, present, (height, width))
    labelled = ((confident > 0) | (lenient == 0)) & inside
    return confident.masked_fill(~labelled, IGNORE)


def _winner(
    planes: Tensor, background: float | Tensor, present: PresentClasses, size: tuple[int, int]
) -> Tensor:
    """Class `[B, H, W]` of the largest enlarged softmax, with the background at one height."""
    backdrop = torch.zeros_like(planes[:, :1]) + background
    probability = torch.cat([backdrop, planes], dim=1).softmax(dim=1)
    probability = F.interpolate(probability, size=size, mode="bilinear", align_corners=False)
    slot = probability.max(dim=1).indices  # ten times as fast as argmax on the CPU
    names = F.pad(present.index + 1, (1, 0))
    return names.gather(1, slot.flatten(1)).view_as(slot)


@one_thread()
def segmentation_pseudo_label(
    segmentation: Tensor, labels: Tensor, cam_size: tuple[int, int], temperature: float
) -> Tensor:
    """Softmax of the filtered logits `[B, C + 1, H, W]` / temperature at the CAM's grid (released code).

    Equals the softmax at full resolution followed by a bilinear resize, but only the four pixels that the
    resize reads for each grid point are computed. Returns foreground probabilities `[B, C, h, w]` float32.
    """
    rows, row_weight = _bilinear_reads(segmentation.shape[-2], cam_size[0], segmentation.device)
    columns, column_weight = _bilinear_reads(segmentation.shape[-1], cam_size[1], segmentation.device)
    read = segmentation[:, :, rows.flatten()[:, None], columns.flatten()].float()
    probability = (filter_logits_by_labels(read, labels) / temperature).softmax(dim=1)[:, 1:]
    corners = probability.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    along_rows = (corners * column_weight).sum(dim=-1)
    return (along_rows * row_weight[..., None]).sum(dim=-2)


def _bilinear_reads(full: int, reduced: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions `[reduced, 2]` that a bilinear resize of one axis reads, and their weights."""
    centre = (torch.arange(reduced, device=device, dtype=torch.float32) + 0.5) * (full / reduced)
    source = (centre - 0.5).clamp(min=0)
    before = source.floor().long().clamp(max=full - 1)
    after = (before + 1).clamp(max=full - 1)
    fraction = source - before
    return torch.stack([before, after], 1), torch.stack([1 - fraction, fraction], 1)
