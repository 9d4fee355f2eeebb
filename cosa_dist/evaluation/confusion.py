"""Confusion matrices and the scores read from them.

A segmentation is judged from one `[K, K]` table of pixel counts: row = true class, column =
predicted class. Tables of images, batches and ranks are added, so predictions are never kept.
Scores are fractions in float64; a score that has no pixel to stand on is NaN, not 0. So are the scores of
truth that is all background: finding nothing would be perfect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count the pixels of each (true class, predicted class) pair.

    Args:
        prediction: `[...]` integers in 0..K-1, at least where the target counts.
        target: `[...]` integers of the same shape; values outside 0..K-1 (such as 255) are ignored.
        classes: K, the background included.

    Returns:
        `[K, K]` int64, rows are true classes.

    Raises:
        ValueError: if the shapes differ, or a counted pixel has a prediction outside 0..K-1.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in "
            "shape: resize the prediction to the mask first"
        )
    target = target.reshape(-1).long()
    counted = (target >= 0) & (target < classes)
    target = target[counted]
    prediction = prediction.reshape(-1)[counted].long()
    if prediction.numel() and (prediction.min() < 0 or prediction.max() >= classes):
        raise ValueError(
            f"predictions reach from {int(prediction.min())} to {int(prediction.max())}, "
            f"but {classes} classes allow 0 to {classes - 1} only"
        )
    pairs = target * classes + prediction
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, `[K, K]` -> `[K]` float64 fractions.

    NaN for a class that occurs neither in the ground truth nor in the predictions.
    """
    counts = confusion.double()
    hit = counts.diagonal()
    return hit / (counts.sum(0) + counts.sum(1) - hit)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU over the classes that occur in the ground truth, as a fraction (released code).

    A class that is only predicted lowers the IoU of the classes it takes pixels from, but has no
    share of its own in the mean. NaN if no foreground class occurs in the ground truth.
    """
    return _mean_of_present(iou_per_class(confusion), confusion)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of the counted pixels with the right class; NaN if no foreground class is in the ground truth."""
    counts = confusion.double()
    return float(counts.diagonal().sum() / counts.sum()) if counts[1:].any() else math.nan


def mean_accuracy(confusion: Tensor) -> float:
    """Mean over the classes in the ground truth of the share of their pixels that are right; NaN as above."""
    counts = confusion.double()
    return _mean_of_present(counts.diagonal() / counts.sum(1), confusion)


def _mean_of_present(values: Tensor, confusion: Tensor) -> float:
    """Mean of the values `[K]` over the classes in the ground truth; NaN if that is at most background."""
    present = confusion.sum(1) > 0
    return float(values[present].mean()) if present[1:].any() else math.nan
