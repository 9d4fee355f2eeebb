"""Segmentation-to-CAM loss (S2C): the CAM learns the segmentation pseudo-label."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from cosa_dist.stopwatch import part


@part("loss: S2C")
def seg_to_cam_loss(cam: Tensor, target: Tensor) -> Tensor:
    """Multi-label soft margin loss of the ReLU of the CAM at each grid point (released code).

    Every grid point counts, also padding. Because of the ReLU a negative activation gets no
    gradient, and a class that is absent everywhere costs log 2.

    Args:
        cam: `[B, C, h, w]` raw CAMs (before the ReLU).
        target: `[B, C, h, w]` foreground probabilities at the CAM's grid.

    Returns:
        Scalar, float32: the mean over images, classes and grid points.

    Raises:
        ValueError: If the shapes differ.
    """
    if cam.shape != target.shape:
        raise ValueError(
            f"seg_to_cam_loss needs CAM and target of one shape [B, C, h, w], "
            f"got {tuple(cam.shape)} and {tuple(target.shape)}"
        )
    return functional.multilabel_soft_margin_loss(cam.float().relu(), target.float())
