"""The second stage: UPerNet on any backbone of this package, and its loss on masks.

The backbone gives maps at strides 4, 8, 16 and 32; the decoder is that of segmentation_models_pytorch. The
output has the form of a CoSA network's, so that the multi-scale pass, the evaluator and the predictor take
either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.config.method import ModelConfig, SegmenterConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.reading.samples import Batch
from cosa_dist.model.backbone import AveragePool, Backbone
from cosa_dist.model.build import build_on_backbone
from cosa_dist.model.network import NetworkOutput

CHANNELS_OF_A_GROUP = 16


class Segmenter(nn.Module):
    """Backbone, UPerNet decoder and a pixel classifier at stride 4 (the field's usual form)."""

    has_cams = False

    def __init__(self, backbone: Backbone, classes: int, channels: int, norm: str) -> None:
        """Build for `classes` foreground classes on a backbone of four stages; norm `batch` or `group`."""
        # Here, as a first stage does without the package.
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        if 0 in backbone.pyramid_channels:
            raise ValueError("model.backbone: a segmenter needs a backbone of four stages or more")
        self.backbone = backbone
        # The first two of its six inputs, at strides 1 and 2, are never read.
        self.decoder = UPerNetDecoder([3, 0, *backbone.pyramid_channels], 5, channels)
        self.head = nn.Conv2d(channels, classes + 1, 1)
        if norm == "group":
            replace_modules(self.decoder, nn.BatchNorm2d, _group_norm)
        replace_modules(self.decoder, nn.AdaptiveAvgPool2d, lambda pool: AveragePool(pool.output_size))

    def forward(self, images: Tensor) -> NetworkOutput:
        """Segmentation logits `[B, C + 1, H/4, W/4]` of normalised images `[B, 3, H, W]`.

        There are no CAMs (maps of no classes), and image logits come from the segmentation, in evaluation
        mode only.
        """
        maps = self.backbone.pyramid(self.backbone.recoloured(images))
        segmentation = self.head(self.decoder([images, images, *maps]))
        count, planes, *size = segmentation.shape
        logits = segmentation.new_empty(count, planes - 1) if self.training else image_logits(segmentation)
        none = segmentation.new_empty(count, 0, *size)
        return NetworkOutput(logits, logits, none, none, segmentation, maps[-1])


def image_logits(segmentation: Tensor) -> Tensor:
    """Image logits `[B, C]` of a segmentation `[B, C + 1, h, w]`: the highest log-odds of any pixel (ours).

    Above 0 exactly where a pixel gives the class a probability above one half.
    """
    log_probability = segmentation.float().log_softmax(1)[:, 1:]
    most = log_probability.amax((-2, -1)).clamp(max=-1e-6)
    return most - torch.log(-torch.expm1(most))


def replace_modules(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put what `make` makes of it in the place of every module of a kind inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            replace_modules(child, kind, make)


def _group_norm(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    """The group norm in place of a batch norm.

    Groups have 16 channels (all, if there are fewer): the pooled map of one cell must not be normed away.
    """
    groups = math.gcd(max(1, norm.num_features // CHANNELS_OF_A_GROUP), norm.num_features)
    return nn.GroupNorm(groups, norm.num_features)


def build_segmenter(
    model: ModelConfig, config: SegmenterConfig, classes: int, seed: int, *, load_weights: bool = True
) -> Segmenter:
    """Create the network for `classes` foreground classes; see `build_on_backbone`."""
    channels, norm = config.decoder_channels, config.decoder_norm
    return build_on_backbone(
        model, seed, lambda backbone: Segmenter(backbone, classes, channels, norm), load_weights
    )


def pixel_weights(batch: Batch, weigh: bool) -> Tensor:
    """Weight of each pixel, `[B, S, S]` float32: 0 where the mask says ignore, else 1, or the reliability."""
    if batch.masks is None:
        raise ValueError("a segmenter needs masks: the batch has none")
    counted = (batch.masks != IGNORE).float()
    if not weigh:
        return counted
    if batch.reliability is None:
        raise ValueError(
            "segmenter.weigh: the shards hold no reliability; make the pseudo-masks with "
            "pseudo_masks.reliability true"
        )
    return counted * batch.reliability.float() / 255.0


def balanced(weights: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Weights `[B, S, S]` with background and foreground of the global batch each half of their sum (ours).

    `counts` `[2]` are the sums of the weights over the background and the foreground of the global batch. A
    side without a pixel leaves its half empty.
    """
    total = counts.sum().clamp(min=torch.finfo(torch.float32).tiny)
    factor = total / (2 * torch.where(counts > 0, counts, total))
    return weights * torch.where(masks == 0, factor[0], factor[1])


def mask_loss(segmentation: Tensor, masks: Tensor, weights: Tensor, divide_by: Tensor) -> Tensor:
    """Cross-entropy of logits `[B, C + 1, h, w]` with masks `[B, S, S]` (255: ignored), weighted by pixel.

    The logits are enlarged to the masks' size; the sum over the pixels is divided by a number that all ranks
    agree on, usually the sum of the weights of the global batch. Float32; 0 with zero gradients where no
    pixel counts.
    """
    size = (masks.shape[-2], masks.shape[-1])
    enlarged = functional.interpolate(segmentation.float(), size=size, mode="bilinear", align_corners=False)
    each = functional.cross_entropy(enlarged, masks.long(), ignore_index=IGNORE, reduction="none")
    return (each * weights).sum() / divide_by.clamp(min=torch.finfo(torch.float32).tiny)
