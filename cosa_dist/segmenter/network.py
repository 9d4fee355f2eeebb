"""The second stage's network: UPerNet on any backbone of this package.

The backbone gives maps at strides 4, 8, 16 and 32; the decoder is that of segmentation_models_pytorch
(pyramid pooling of 1, 2, 3 and 6 cells, feature pyramid, fusion at stride 4). The output has the form of a
CoSA network's, so that the multi-scale pass, the evaluator and the predictor take either.
"""

from __future__ import annotations

import math

import torch
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from cosa_dist.config.method import ModelConfig, SegmenterConfig
from cosa_dist.model.backbone import Backbone
from cosa_dist.model.build import build_on_backbone
from cosa_dist.model.network import NetworkOutput

CHANNELS_OF_A_GROUP = 16


class Segmenter(nn.Module):
    """Backbone, UPerNet decoder and a pixel classifier at stride 4 (the field's usual form)."""

    has_cams = False

    def __init__(self, backbone: Backbone, classes: int, channels: int, norm: str) -> None:
        """Build for `classes` foreground classes; `norm` is `batch` or `group`.

        Raises:
            ValueError: the backbone has fewer than four stages.
        """
        super().__init__()
        if 0 in backbone.pyramid_channels:
            raise ValueError("model.backbone: a segmenter needs a backbone of four stages or more")
        self.backbone = backbone
        # The first two of its six inputs, at strides 1 and 2, are never read.
        self.decoder = UPerNetDecoder([3, 0, *backbone.pyramid_channels], 5, channels)
        self.head = nn.Conv2d(channels, classes + 1, 1)
        if norm == "group":
            use_group_norm(self.decoder)

    def forward(self, images: Tensor) -> NetworkOutput:
        """Run normalised images [B, 3, H, W] through the network.

        Returns:
            Segmentation logits [B, C + 1, H/4, W/4]; no CAMs (maps of no classes); image logits `[B, C]` from
            the segmentation itself (see `image_logits`), none while training.
        """
        maps = self.backbone.pyramid(images)
        segmentation = self.head(self.decoder([images, images, *maps]))
        count, planes = segmentation.shape[:2]
        logits = segmentation.new_empty(count, planes - 1)
        if not self.training:
            logits = image_logits(segmentation)
        none = segmentation.new_empty(count, 0, *segmentation.shape[-2:])
        return NetworkOutput(logits, logits, none, none, segmentation, maps[-1])


def image_logits(segmentation: Tensor) -> Tensor:
    """Image logits `[B, C]` of a segmentation `[B, C + 1, h, w]`: the highest log-odds of any pixel (ours).

    Above 0 exactly where a pixel gives the class a probability above one half.
    """
    log_probability = segmentation.float().log_softmax(1)[:, 1:]
    most = log_probability.amax((-2, -1)).clamp(max=-1e-6)
    return most - torch.log(-torch.expm1(most))


def use_group_norm(module: nn.Module) -> None:
    """Replace every batch norm inside `module` by a group norm.

    Groups have 16 channels (all, if there are fewer): the pooled map of one cell must not be normed away.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = max(1, child.num_features // CHANNELS_OF_A_GROUP)
            groups = math.gcd(groups, child.num_features)
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            use_group_norm(child)


def build_segmenter(model: ModelConfig, config: SegmenterConfig, classes: int, seed: int) -> Segmenter:
    """Create the network for `classes` foreground classes; random parts depend on `seed` alone.

    `model.weights` is `none`, a timm tag, or a file of a backbone or of a whole CoSA network, whose backbone
    is taken.

    Raises:
        ValueError: an architecture or weights that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    channels, norm = config.decoder_channels, config.decoder_norm
    return build_on_backbone(model, seed, lambda backbone: Segmenter(backbone, classes, channels, norm))
