"""The CoSA network: one backbone, two CAM classifiers and a segmentation decoder.

Online and assignment network are two instances of it. `build_network` is a pure function of its arguments
and the seed, so every rank starts from the same weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cosa_dist.config.method import ModelConfig
from cosa_dist.model.backbone import build_backbone
from cosa_dist.model.backbone_base import Backbone
from cosa_dist.model.heads import CamClassifier, LargeFovDecoder
from cosa_dist.model.weights import load_weight_file, parse_weight_source


class NetworkOutput(NamedTuple):
    """What one pass gives; C foreground classes, grid h x w of the backbone."""

    logits: Tensor
    """[B, C] image logits of the main classifier"""
    aux_logits: Tensor
    """[B, C] image logits of the auxiliary classifier"""
    cam: Tensor
    """[B, C, h, w] raw class activation maps"""
    aux_cam: Tensor
    """[B, C, h, w] raw auxiliary class activation maps"""
    segmentation: Tensor
    """[B, C + 1, h, w] segmentation logits, background first"""
    features: Tensor
    """[B, D, h, w] main feature map"""


class CosaNetwork(nn.Module):
    """Backbone, classifier, auxiliary classifier and decoder (source: released code)."""

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        decoder_channels: int = 512,
        decoder_dilation: int = 5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = CamClassifier(backbone.channels, classes)
        self.aux_classifier = CamClassifier(backbone.aux_channels, classes)
        self.decoder = LargeFovDecoder(backbone.channels, classes + 1, decoder_channels, decoder_dilation)

    def forward(self, images: Tensor, segment: bool = True) -> NetworkOutput:
        """Run normalised images [B, 3, H, W] through the network.

        With `segment=False` the decoder rests and the segmentation is an empty [B, C + 1, 0, 0]: nothing
        reads it while only the classification losses count.
        """
        features, aux_features = self.backbone(images)
        logits, cam = self.classifier(features)
        aux_logits, aux_cam = self.aux_classifier(aux_features)
        if segment:
            segmentation = self.decoder(features)
        else:
            segmentation = features.new_empty((len(images), cam.shape[1] + 1, 0, 0))
        return NetworkOutput(logits, aux_logits, cam, aux_cam, segmentation, features)


def build_network(config: ModelConfig, classes: int, seed: int) -> CosaNetwork:
    """Create the online network for `classes` foreground classes.

    Random parts are drawn from `seed` alone; the caller's random state is left as it was. `model.weights` is
    `none`, a timm tag, or a file of a backbone or of a whole network (the authors' or ours).

    Raises:
        ValueError: an architecture or weights that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    source = parse_weight_source(config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(
            config.backbone, source.tag, config.aux_layer, dict(config.backbone_options)
        )
        network = CosaNetwork(backbone, classes, config.decoder_channels, config.decoder_dilation)
    if source.file is not None:
        load_weight_file(network, source.file, config.aux_layer)
    if config.freeze_position_embedding:
        freeze_position_embedding(backbone)
    return network


def freeze_position_embedding(backbone: Backbone) -> None:
    """Keep a backbone's position embedding, if it has one, as it is."""
    position = getattr(backbone.model, "pos_embed", None)
    if isinstance(position, nn.Parameter):
        position.requires_grad_(False)
