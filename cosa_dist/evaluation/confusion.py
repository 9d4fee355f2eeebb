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
    return checked_confusion(pair_counts(prediction, target, classes))


def pair_counts(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """The counts of `confusion_matrix`, `[K, K + 1]`: the last column's predictions are none of the classes.

    Counts of several images are added, and checked together: that makes the host wait for the device.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in "
            "shape: resize the prediction to the mask first"
        )
    rows, columns = (_class_or(classes, each.reshape(-1)) for each in (target, prediction))
    counts = count_places(rows * (classes + 1) + columns, (classes + 1) ** 2)
    return counts.view(classes + 1, classes + 1)[:classes]


def _class_or(other: int, classes: Tensor) -> Tensor:
    """The classes where they are in 0..`other` - 1, else `other`; int64."""
    classes = classes.long()
    return classes.masked_fill((classes < 0) | (classes >= other), other)


def checked_confusion(counts: Tensor) -> Tensor:
    """The confusion matrix of `pair_counts`; ValueError if a prediction was none of the classes."""
    classes = len(counts)
    if outside := int(counts[:, classes].sum()):
        raise ValueError(
            f"{outside} pixels are predicted as no class: {classes} classes allow 0 to {classes - 1} only"
        )
    return counts[:, :classes]


def count_places(places: Tensor, bins: int) -> Tensor:
    """How often each of the numbers 0..`bins` - 1 occurs in int64 `places`, `[bins]` int64."""
    if places.device.type == "cpu":
        return torch.bincount(places.flatten(), minlength=bins)
    # There bincount would make the host wait twice, to look for numbers outside.
    counts = torch.zeros(bins, dtype=torch.int64, device=places.device)
    return counts.scatter_add_(0, places.flatten(), torch.ones_like(places).flatten())


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
    positive = (labels > 0.5).gather(1, order).long()
    columns = scores.shape[1]
    place = torch.arange(columns, device=scores.device).expand(scores.shape)
    step_ends = torch.ones_like(scores, dtype=torch.bool)
    step_ends[:, :-1] = scores[:, :-1] != scores[:, 1:]
    ends = place.masked_fill(~step_ends, columns - 1).flip(1).cummin(1).values.flip(1)
    precision = positive.cumsum(1).double() / (place + 1)
    return (precision.gather(1, ends) * positive).sum(1) / positive.sum(1)
