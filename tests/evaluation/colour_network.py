"""A network whose answers are known: it reads the classes from pure red, green and blue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosa_dist.data.reading.loader import EvalSample
from cosa_dist.data.reading.views import IMAGENET_MEAN, IMAGENET_STD
from cosa_dist.model.network import NetworkOutput

CLASSES = ("red", "green", "blue")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


class ColourNetwork(nn.Module):
    """Pixelwise: CAM = colour, segmentation = colour against 0.1, class logit = 2 max - 1.

    The auxiliary CAM is the colour squared. A dropout shows whether evaluation mode is on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> NetworkOutput:
        mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
        colour = self.dropout(images * std + mean)
        logits = 2 * colour.amax((-2, -1)) - 1
        background = torch.full_like(colour[:, :1], 0.1)
        segmentation = torch.cat([background, colour], 1)
        return NetworkOutput(logits, 0.5 * logits, colour, colour**2, segmentation, colour)


def colour_sample(
    name: str,
    image: Tensor,
    mask: Tensor | None,
    present: list[int],
    context: Tensor | None = None,
) -> EvalSample:
    labels = torch.zeros(len(CLASSES))
    labels[[index - 1 for index in present]] = 1
    return EvalSample(id=name, image=image, mask=mask, labels=labels, context=context)
