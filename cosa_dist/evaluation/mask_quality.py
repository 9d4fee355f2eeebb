"""How good pseudo-masks are, where the true masks are known: sums of pixel counts, and what they say.

The mIoU leaves ignored pixels out, so masks that ignore what is hard look better than what can be learned
from them. Three more figures say what was left out: the mIoU with ignored pixels counted as missed, the share
of each class that is ignored, and each class's share of the labelled pixels beside its true one.
"""

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

    table: Tensor
    """[K + 1, K + 1] int64: true class, pseudo-class; last column: ignored pixels, last row: empty"""
    pixels: int = 0
    ignored: int = 0
    """pixels that the pseudo-masks ignore"""
    images: int = 0
    judged: int = 0
    """images whose true mask is known"""

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
        return MaskCounts(
            self.table + other.table,
            self.pixels + other.pixels,
            self.ignored + other.ignored,
            self.images + other.images,
            self.judged + other.judged,
        )

    def as_row(self) -> dict[str, Any]:
        """Plain values that `from_row` reads back."""
        return {**vars(self), "table": self.table.tolist()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> MaskCounts:
        """Counts from what `as_row` gave.

        Raises:
            KeyError: the table is not there (a row of an earlier version).
        """
        return cls(**{**row, "table": torch.tensor(row["table"], dtype=torch.int64)})

    def true_pixels(self) -> Tensor:
        """Pixels of each of the K classes in the true masks, `[K]`."""
        return self.table[:-1].sum(1)

    def quality(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Quality in per cent; where no true mask is known, only `ignored` has a value.

        `miou`, `iou`: over the pixels that are not ignored; `miou_missed`: ignored pixels count as missed;
        `ignored`: of all pixels; `ignored_of_class`: of a class's true pixels; `share`, `true_share`: a
        class's part of the labelled pixels and of the truth, both where the truth is known. A class that
        a figure has no pixel to stand on for has None.
        """
        confusion, missed = self.table[:-1, :-1], self.table[:-1, -1]
        truth, labelled = self.true_pixels(), confusion.sum(0)
        return {
            "images": self.images,
            "images_with_truth": self.judged,
            "miou": _per_cent(mean_iou(confusion)) if self.judged else None,
            "miou_missed": _per_cent(mean_iou(self.table)) if self.judged else None,
            "ignored": 100.0 * self.ignored / self.pixels if self.pixels else None,
            "iou": self._by_class(class_names, iou_per_class(confusion)),
            "ignored_of_class": self._by_class(class_names, missed.double() / truth),
            "share": self._by_class(class_names, labelled.double() / labelled.sum()),
            "true_share": self._by_class(class_names, truth.double() / truth.sum()),
        }

    def _by_class(self, class_names: Sequence[str], fractions: Tensor) -> dict[str, float | None]:
        if not self.judged:
            return {}
        values = [_per_cent(value) for value in fractions.tolist()]
        return dict(zip(("background", *class_names), values, strict=True))


def _per_cent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else 100.0 * fraction
