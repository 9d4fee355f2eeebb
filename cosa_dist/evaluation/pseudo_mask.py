"""Pseudo-masks: a trained CoSA's predictions, turned into classes to train a segmenter on, and their quality.

The images are training images, so only tagged classes (and background) are given out. A source says where
classes come from, a refinement moves their borders to those of the image, and what remains uncertain is
ignored (255). The combination is ours; the parts are the field's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.confusion import confusion_matrix, iou_per_class, mean_iou, per_cent
from cosa_dist.evaluation.protocols import resize_map
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.pixel_adaptive import pixel_adaptive

Refine = Callable[[Tensor], Tensor]
"""refines probabilities `[K, H, W]`"""


@dataclass(frozen=True)
class PseudoMask:
    """Classes `[H, W]` uint8 (0 background, 1..C, 255 ignored) and their reliability `[H, W]` in 0..1."""

    classes: Tensor
    reliability: Tensor


def pseudo_mask(
    output: MultiScaleOutput, index: int, image: Tensor, labels: Tensor, config: PseudoMaskConfig, passes: int
) -> PseudoMask:
    """Label image `index` of a batch, `[3, H, W]` uint8 at its own size, by its tags `[C]` (multi-hot).

    The output's segmentation logits are sums over `passes`, scales times mirror images. Of tags on the CPU
    the host need not ask the device which they are.
    """
    refine, size = _refinement(image, config.refinement), (image.shape[-2], image.shape[-1])
    if config.source == "cam":
        return _from_cam(output.cam[index], labels, config, refine, size)
    segmentation = _from_segmentation(output.segmentation[index] / passes, labels, config, refine, size)
    if config.source == "segmentation":
        return segmentation
    cam = _from_cam(output.cam[index], labels, config, refine, size)
    agreed = kept = segmentation.classes == cam.classes
    if config.source == "object_agreement":
        kept = agreed | (segmentation.classes == 0)
    lower = torch.minimum(segmentation.reliability, cam.reliability)
    return PseudoMask(
        segmentation.classes.masked_fill(~kept, IGNORE),
        torch.where(agreed, lower, segmentation.reliability) * kept,
    )


def _refinement(image: Tensor, kind: str) -> Refine:
    """The refinement by an image `[3, H, W]`; what it needs of the image is made once."""
    match kind:
        case "crf" | "crf_ten_iterations":
            config = CRF_SETTINGS["released" if kind == "crf" else "ten_iterations"]
            crf = DenseCrf.build(image[None], config)
            return lambda probabilities: crf.refine(probabilities[None])[0]
        case "pixel_adaptive":

            def refine(probabilities: Tensor) -> Tensor:
                refined = pixel_adaptive(image[None].float(), probabilities[None])[0]
                return refined / refined.sum(0, keepdim=True).clamp(min=1e-6)

            return refine
    return lambda probabilities: probabilities


def _from_segmentation(
    logits: Tensor, labels: Tensor, config: PseudoMaskConfig, refine: Refine, size: tuple[int, int]
) -> PseudoMask:
    """The most probable class of a segmentation `[C + 1, h, w]`; reliability is its probability."""
    planes = functional.pad(labels > 0.5, (1, 0), value=True).nonzero().flatten()
    planes = planes.to(logits.device, non_blocking=True)
    most, place = refine(resize_map(logits[planes], size).softmax(0)).max(0)
    classes = planes[place].masked_fill(most < config.min_probability, IGNORE)
    return PseudoMask(classes.to(torch.uint8), most)


def _from_cam(
    cam: Tensor, labels: Tensor, config: PseudoMaskConfig, refine: Refine, size: tuple[int, int]
) -> PseudoMask:
    """Foreground where a CAM `[C, h, w]` beats the high level, background where all lose to the low one.

    Reliability grows with the distance of the strongest activation from the level on its side, 0 on it.
    """
    planes = (labels > 0.5).nonzero().flatten().to(cam.device, non_blocking=True)
    activations = resize_map(cam[planes], size).clamp(0, 1)
    if not len(planes):
        nothing = cam.new_zeros(size)
        return PseudoMask(nothing.to(torch.uint8), nothing + 1)

    def against(level: float) -> Tensor:
        scores = torch.cat([activations.new_full((1, *size), level), activations])
        return refine(scores / scores.sum(0, keepdim=True).clamp(min=1e-6)).max(0).indices

    above, below = against(config.cam_high), against(config.cam_low)
    classes = torch.where(above > 0, functional.pad(planes + 1, (1, 0))[above], IGNORE)
    classes = classes.masked_fill(below == 0, 0)
    strongest = activations.amax(0)
    over = (strongest - config.cam_high) / max(1 - config.cam_high, 1e-6)
    under = (config.cam_low - strongest) / max(config.cam_low, 1e-6)
    reliability = torch.where(classes > 0, over, under).clamp(0, 1) * (classes != IGNORE)
    return PseudoMask(classes.to(torch.uint8), reliability)


@dataclass
class MaskCounts:
    """Pixel counts of pseudo-masks over some images; those of several parts are added."""

    table: Tensor
    """[K + 1, K + 1] int64: true class, pseudo-class; last column: ignored pixels, last row: empty"""
    pixels: int = 0
    ignored: int = 0  # pixels that the pseudo-masks ignore
    images: int = 0
    judged: int = 0  # images whose true mask is known

    @classmethod
    def empty(cls, classes: int) -> MaskCounts:
        """Counts of no image, for K = `classes` with the background."""
        return cls(torch.zeros(classes + 1, classes + 1, dtype=torch.int64))

    def add(self, classes: Tensor, truth: Tensor | None) -> None:
        """Count one image: pseudo-classes and, if known, true classes (`[H, W]` each)."""
        self.images += 1
        self.pixels += classes.numel()
        self.ignored += int((classes == IGNORE).sum())
        if truth is not None:
            self.judged += 1
            ignored = len(self.table) - 1
            given = torch.where(classes == IGNORE, ignored, classes.long())
            known = torch.where(truth < ignored, truth.long(), -1)
            self.table += confusion_matrix(given, known, len(self.table)).cpu()

    def __add__(self, other: MaskCounts) -> MaskCounts:
        names = [field.name for field in fields(self)]
        return MaskCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    def as_row(self) -> dict[str, Any]:
        """Plain values that `from_row` reads back."""
        return {**vars(self), "table": self.table.tolist()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> MaskCounts:
        """Counts from what `as_row` gave; KeyError for a row of an earlier version."""
        return cls(**{**row, "table": torch.tensor(row["table"], dtype=torch.int64)})

    def true_pixels(self) -> Tensor:
        """Pixels of each of the K classes in the true masks, `[K]`."""
        return self.table[:-1].sum(1)

    def quality(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Quality in per cent; where no true mask is known, only `ignored` has a value.

        `miou`, `iou`: over the pixels that are not ignored; `miou_missed`: ignored pixels count as missed;
        `ignored`: of all pixels; `ignored_of_class`: of a class's true pixels; `share`, `true_share`: a
        class's part of the labelled pixels and of the truth, both where the truth is known. A class that a
        figure has no pixel to stand on for has None.
        """
        confusion, missed = self.table[:-1, :-1], self.table[:-1, -1]
        truth, labelled = self.true_pixels(), confusion.sum(0)

        def by_class(fractions: Tensor) -> dict[str, float | None]:
            values = map(per_cent, fractions.tolist())
            return dict(zip(("background", *class_names), values, strict=True)) if self.judged else {}

        return {
            "images": self.images,
            "images_with_truth": self.judged,
            "miou": per_cent(mean_iou(confusion)) if self.judged else None,
            "miou_missed": per_cent(mean_iou(self.table)) if self.judged else None,
            "ignored": 100.0 * self.ignored / self.pixels if self.pixels else None,
            "iou": by_class(iou_per_class(confusion)),
            "ignored_of_class": by_class(missed.double() / truth),
            "share": by_class(labelled.double() / labelled.sum()),
            "true_share": by_class(truth.double() / truth.sum()),
        }
