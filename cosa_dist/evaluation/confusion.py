"""Confusion matrices and the scores read from them; average precision of the image classifier.

A segmentation is judged from one `[K, K]` table of pixel counts, row = true class, column = predicted class;
tables of images and ranks are added. Scores are fractions in float64; a score that has no pixel to stand on
is NaN, and so are those of truth that is all background, where finding nothing would be perfect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count the pixels of each (true, predicted) pair of K classes, `[K, K]` int64.

    Targets outside 0..K-1 (such as 255) are ignored; ValueError for a counted prediction outside them.
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
    return torch.bincount(target * classes + prediction, minlength=classes**2).reshape(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union `[K]` float64; NaN for a class in neither truth nor predictions."""
    counts = confusion.double()
    hit = counts.diagonal()
    return hit / (counts.sum(0) + counts.sum(1) - hit)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU over the classes that occur in the ground truth (released code).

    A class that is only predicted lowers the IoU of the classes it takes pixels from, but is not in the mean.
    """
    return _mean_of_present(iou_per_class(confusion), confusion)


def pixel_accuracy(confusion: Tensor) -> float:
    """Fraction of the counted pixels with the right class."""
    counts = confusion.double()
    return float(counts.diagonal().sum() / counts.sum()) if counts[1:].any() else math.nan


def mean_accuracy(confusion: Tensor) -> float:
    """Mean over the classes in the ground truth of the fraction of their pixels that are right."""
    counts = confusion.double()
    return _mean_of_present(counts.diagonal() / counts.sum(1), confusion)


def _mean_of_present(values: Tensor, confusion: Tensor) -> float:
    present = confusion.sum(1) > 0
    return float(values[present].mean()) if present[1:].any() else math.nan


def per_cent(fraction: float | Tensor) -> float | None:
    """A fraction in per cent, None for NaN."""
    value = 100.0 * float(fraction)
    return None if math.isnan(value) else value


def image_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision over the classes for each image that has a label (released code), `[M <= N]` float64.

    Scores and multi-hot labels are `[N, C]`. It is `sum_n (recall_n - recall_{n-1}) precision_n` over the
    steps of the precision-recall curve, of which equal scores form one.
    """
    labelled = (labels > 0.5).any(dim=1)
    return _average_precision(scores[labelled], labels[labelled])


def class_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision over the images for each class, `[C]`: the parts of the literature's mAP.

    It differs from the image's by many points. NaN for a class that no image has.
    """
    return _average_precision(scores.T, labels.T)


def _average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each row, NaN for one without positives."""
    scores, order = scores.float().sort(dim=1, descending=True)
    positive = (labels > 0.5).gather(1, order).double()
    columns = scores.shape[1]
    place = torch.arange(columns, device=scores.device).expand(scores.shape)
    step_ends = torch.ones_like(scores, dtype=torch.bool)
    step_ends[:, :-1] = scores[:, :-1] != scores[:, 1:]
    ends = place.masked_fill(~step_ends, columns - 1).flip(1).cummin(1).values.flip(1)
    precision = positive.cumsum(1) / (place + 1)
    return (precision.gather(1, ends) * positive).sum(1) / positive.sum(1)
