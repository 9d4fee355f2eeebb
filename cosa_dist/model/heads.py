"""The two kinds of heads: the max-pool image classifier, whose weights make the CAM, and the decoder.

Their last layer is computed in float32 under autocast too: CAMs are compared with thresholds, for which the
eight bits of bfloat16 are coarse, and these layers are too small to gain from it (ours).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(features: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution in float32: [B, D, h, w] with weights [C, D, 1, 1] to [B, C, h, w]."""
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return F.conv2d(features, weight)
    with torch.autocast(device, enabled=False):
        return F.conv2d(features.float(), weight.float())


class CamClassifier(nn.Module):
    """Multi-label classifier whose weights, applied at every position, give the CAM (released code)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(channels, classes, 1, bias=False).weight.detach())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return image logits [B, C] and the raw CAM [B, C, h, w] of features [B, D, h, w].

        The logits come from the global maximum of each channel, not from the maximum of the CAM.
        """
        pooled = F.adaptive_max_pool2d(features, 1)
        return project(pooled, self.weight).flatten(1), project(features, self.weight)


class LargeFovDecoder(nn.Module):
    """Two dilated 3x3 convolutions and a 1x1: segmentation logits at the feature grid (released code).

    No bias and no norm; `channels` hidden channels, dilation 5 in the released networks.
    """

    def __init__(self, in_channels: int, outputs: int, channels: int, dilation: int) -> None:
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv6 = nn.Conv2d(in_channels, channels, 3, **spread)  # type: ignore[arg-type]
        self.conv7 = nn.Conv2d(channels, channels, 3, **spread)  # type: ignore[arg-type]
        self.conv8 = nn.Conv2d(channels, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C + 1, h, w] of features [B, D, h, w]."""
        hidden = F.relu(self.conv6(features))
        return project(F.relu(self.conv7(hidden)), self.conv8.weight)
