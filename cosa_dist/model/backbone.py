"""What every backbone offers: a main and an auxiliary feature map on one grid, and its sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cosa_dist.data.reading.views import IMAGENET_MEAN, IMAGENET_STD, channel_planes

Colour = tuple[float, ...]  # a number for each channel
Colours = tuple[Colour, Colour]  # mean and standard deviation, of values in 0..1
IMAGENET_COLOURS: Colours = (IMAGENET_MEAN, IMAGENET_STD)


class Backbone(nn.Module):
    """A timm model as a pair of feature maps; one subclass for each kind of architecture."""

    model: nn.Module  # the timm model, with timm's parameter names
    channels: int  # D, channels of the main map
    aux_channels: int  # D', channels of the auxiliary map
    stride: int  # pixels of the input per cell of the maps, along each axis
    pyramid_channels: tuple[int, int, int, int]  # channels of the maps of `pyramid`
    any_size: bool = True  # whether inputs that the stride does not divide are accepted (see `enlarged`)
    has_blocks: bool = True  # whether it runs its blocks through `run_block`
    colours: Colours = IMAGENET_COLOURS  # that the encoder was trained on
    frozen: bool = False  # whether it stays as it is, without dropout and with the statistics that it has
    recomputes: bool = False  # whether the backward pass computes the blocks anew

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the main [B, D, h, w] and the auxiliary map [B, D', h, w]."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to four maps [B, D_i, H/s, W/s], s = 4, 8, 16, 32 (rounded up).

        Dense heads such as UPerNet read them; the last one is normed.
        """
        raise TypeError(f"{type(self).__name__} defines no pyramid")

    def freeze(self) -> None:
        """Let it neither learn nor count any more."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def recoloured(self, images: Tensor) -> Tensor:
        """Bring images [B, 3, H, W] of ImageNet's mean and deviation to those of this encoder."""
        if self.colours == IMAGENET_COLOURS:
            return images
        triples = list(zip(*IMAGENET_COLOURS, *self.colours, strict=True))
        factor = channel_planes([old_std / std for _, old_std, _, std in triples], images.device)
        shift = channel_planes([(old - mean) / std for old, _, mean, std in triples], images.device)
        return images * factor + shift

    def run_block(self, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        """Tokens after `block(*inputs)`.

        If the backbone recomputes, the backward pass keeps only the inputs and computes the block again, with
        the same dropout.
        """
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a file's headless tensors into this model's form: names, and tables of another size."""
        return state


def backbone_of(network: nn.Module) -> Backbone:
    """The backbone that a network of this package is built on."""
    backbone = network.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def average_pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [B, D, h, w] to [B, D, *size]; see `_by_products`."""
    if _repeatable(maps):
        return _by_products(maps, size, lambda rows, new: F.adaptive_avg_pool2d(rows, (rows.shape[-2], new)))
    return F.adaptive_avg_pool2d(maps, size)


def bicubic(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resizing of [B, D, h, w] float32, without antialiasing and aligned corners."""

    def along_rows(rows: Tensor, new: int) -> Tensor:
        return F.interpolate(rows, (rows.shape[-2], new), mode="bicubic", align_corners=False)

    if _repeatable(maps):
        return _by_products(maps, size, along_rows)
    return F.interpolate(maps, size, mode="bicubic", align_corners=False)


def _repeatable(maps: Tensor) -> bool:
    return maps.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _by_products(maps: Tensor, size: tuple[int, int], along_rows: Callable[[Tensor, int], Tensor]) -> Tensor:
    """A resizing of [B, D, h, w], rows and columns by themselves, as matrix products.

    PyTorch has no repeatable gradient of it on GPUs; the matrices are what it makes of unit rows.
    """
    with torch.autocast(maps.device.type, enabled=False):
        down, right = (
            along_rows(torch.eye(old, device=maps.device)[None, None], new)[0, 0].t()
            for old, new in zip(maps.shape[-2:], size, strict=True)
        )
        return (down @ maps.float() @ right.t()).to(maps.dtype)


class AveragePool(nn.AdaptiveAvgPool2d):
    """PyTorch's module, repeatable where that is asked for."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool [B, D, h, w] to the module's size."""
        assert isinstance(self.output_size, int)
        return average_pool(maps, (self.output_size, self.output_size))


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
