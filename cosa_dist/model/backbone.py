"""What every backbone offers: a main and an auxiliary feature map on one grid, and its sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Module):
    """A timm model as a pair of feature maps; one subclass for each kind of architecture."""

    model: nn.Module  # the timm model, with timm's parameter names
    channels: int  # D, channels of the main map
    aux_channels: int  # D', channels of the auxiliary map
    stride: int  # pixels of the input per cell of the maps, along each axis
    pyramid_channels: tuple[int, int, int, int]  # channels of the maps of `pyramid`
    any_size: bool = True  # whether inputs that the stride does not divide are accepted (see `enlarged`)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the main [B, D, h, w] and the auxiliary map [B, D', h, w]."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to four maps [B, D_i, H/s, W/s], s = 4, 8, 16, 32 (rounded up).

        Dense heads such as UPerNet read them; the last one is normed.
        """
        raise TypeError(f"{type(self).__name__} defines no pyramid")

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a file's headless tensors into this model's form: names, and tables of another size."""
        return state


def auxiliary_index(aux_layer: int, layers: int, what: str) -> int:
    """Index from the start of the block or stage that the option `model.aux_layer` counts from the end."""
    if not -layers <= aux_layer <= -2:
        raise ValueError(
            f"model.aux_layer {aux_layer} is not in -{layers}..-2 of a backbone of {layers} {what}"
        )
    return layers + aux_layer


def four_channels(channels: Sequence[int]) -> tuple[int, int, int, int]:
    """Channels of the last four stages; 0 stands for a stage that is not there."""
    first, second, third, fourth = (0, 0, 0, 0, *channels)[-4:]
    return first, second, third, fourth


def enlarged(images: Tensor, stride: int) -> Tensor:
    """Enlarge images [B, 3, H, W] bilinearly to the next size that the stride divides, if it does not yet.

    The maps then cover exactly the image. Left to themselves, networks pad such inputs or cut their borders
    off, each in its own way, and maps brought back to the image's size are stretched.
    """
    height, width = (-(-side // stride) * stride for side in images.shape[-2:])
    if (height, width) == images.shape[-2:]:
        return images
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
