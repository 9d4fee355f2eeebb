"""Image classification loss of the two classifiers."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.stopwatch import part


@part("loss: classification")
def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss, the mean over images and classes (paper, released code).

    Args:
        logits: `[B, C]` image logits.
        labels: `[B, C]` multi-hot image labels.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: If the shapes differ.
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"classification_loss needs logits and labels of one shape, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return functional.multilabel_soft_margin_loss(logits.float(), labels.float())
