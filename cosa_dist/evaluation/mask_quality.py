"""How good pseudo-masks are, where the true masks are known: sums of pixel counts, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.confusion import confusion_matrix, iou_per_class, mean_iou


@dataclass
class MaskCounts:
    """Counts over some images; those of several parts are added."""

    confusion: Tensor
    """[K, K] int64: true class, pseudo-class; without pixels that either of them ignores"""
    pixels: int = 0
    ignored: int = 0
    """pixels that the pseudo-masks ignore"""
    images: int = 0
    judged: int = 0
    """images whose true mask is known"""

    @classmethod
    def empty(cls, classes: int) -> MaskCounts:
        """Counts of no image, for K = `classes` with the background."""
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    def add(self, classes: Tensor, truth: Tensor | None) -> None:
        """Count one image: pseudo-classes and, if known, true classes (`[H, W]` each)."""
        self.images += 1
        self.pixels += classes.numel()
        self.ignored += int((classes == IGNORE).sum())
        if truth is not None:
            self.judged += 1
            counted = torch.where(classes == IGNORE, IGNORE, truth.long())
            self.confusion += confusion_matrix(classes, counted, len(self.confusion)).cpu()

    def __add__(self, other: MaskCounts) -> MaskCounts:
        return MaskCounts(
            self.confusion + other.confusion,
            self.pixels + other.pixels,
            self.ignored + other.ignored,
            self.images + other.images,
            self.judged + other.judged,
        )

    def as_row(self) -> dict[str, Any]:
        """Plain values that `from_row` reads back."""
        return {**vars(self), "confusion": self.confusion.tolist()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> MaskCounts:
        """Counts from what `as_row` gave."""
        return cls(**{**row, "confusion": torch.tensor(row["confusion"], dtype=torch.int64)})

    def quality(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Quality in per cent: `miou` and `iou` by class over the pixels that are not ignored, `ignored`.

        `miou` is None where no true mask is known.
        """
        iou = [_per_cent(value) for value in iou_per_class(self.confusion).tolist()]
        return {
            "images": self.images,
            "images_with_truth": self.judged,
            "miou": _per_cent(float(mean_iou(self.confusion))) if self.judged else None,
            "ignored": 100.0 * self.ignored / self.pixels if self.pixels else None,
            "iou": dict(zip(("background", *class_names), iou, strict=True)) if self.judged else {},
        }


def _per_cent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else 100.0 * fraction
