"""Average precision of the image classifier, per image and per class.

Both are the area under the precision-recall steps,
`sum_n (recall_n - recall_{n-1}) precision_n`, in which equal scores form one step. The released
code averages per image over the classes; the usual figure of the literature averages per class over
the images. They differ by many points, so each has its own name.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """Average precision of each row (`[R, M]` -> `[R]` float64), NaN for one without positives."""
    scores, order = scores.sort(dim=1, descending=True)
    positive = positive.gather(1, order).double()
    columns = scores.shape[1]
    place = torch.arange(columns, device=scores.device).expand(scores.shape)
    step_ends = torch.ones_like(scores, dtype=torch.bool)
    step_ends[:, :-1] = scores[:, :-1] != scores[:, 1:]
    ends = place.masked_fill(~step_ends, columns - 1).flip(1).cummin(1).values.flip(1)
    precision = positive.cumsum(1) / (place + 1)
    return (precision.gather(1, ends) * positive).sum(1) / positive.sum(1)


def _check(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both be [N, C]")
    return scores.float(), labels > 0.5


def image_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision over the classes for each image that has a positive label (released code).

    Args:
        scores: `[N, C]`, logits or probabilities (only their order counts).
        labels: `[N, C]` multi-hot.

    Returns:
        `[M]` float64 fractions in the images' order; images without a label are left out (M <= N).

    Raises:
        ValueError: if the shapes are not the same `[N, C]`.
    """
    scores, positive = _check(scores, labels)
    labelled = positive.any(dim=1)
    return _average_precision(scores[labelled], positive[labelled])


def class_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision over the images for each class (the usual multi-label mAP's parts).

    Args:
        scores: `[N, C]`, logits or probabilities (only their order counts).
        labels: `[N, C]` multi-hot.

    Returns:
        `[C]` float64 fractions; NaN for a class that no image has.

    Raises:
        ValueError: if the shapes are not the same `[N, C]`.
    """
    scores, positive = _check(scores, labels)
    return _average_precision(scores.T, positive.T)
