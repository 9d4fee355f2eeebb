"""One tiny random network of each kind of encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from cosa_dist.config.method import ModelConfig
from cosa_dist.model.build import build_network
from cosa_dist.model.network import CosaNetwork

VIT = {"embed_dim": 24, "depth": 3, "num_heads": 3}
SWIN = {
    "embed_dim": 16,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 1, 2, 2],
    "window_size": 3,
    "drop_path_rate": 0.0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**VIT, "img_size": 64, "patch_size": 16}),
    "vit with any image size": (
        "vit_tiny_patch16_224",
        {**VIT, "img_size": 64, "patch_size": 16, "dynamic_img_size": True},
    ),
    "vit with registers": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 64, "patch_size": 16}),
    "deit with distillation": (
        "deit_tiny_distilled_patch16_224",
        {**VIT, "img_size": 64, "patch_size": 16},
    ),
    "vit of clip": ("vit_base_patch16_clip_224", {**VIT, "img_size": 64, "patch_size": 16}),
    "deit3": ("deit3_small_patch16_224", {**VIT, "img_size": 64}),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "img_size": 64, "patch_size": 16}),
    "eva with mixed rotary embeddings": ("vit_small_patch16_rope_mixed_224", {**VIT, "img_size": 64}),
    "vit of dinov3": ("vit_small_patch16_dinov3", {**VIT, "img_size": 64}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "resnet": ("resnet10t", {"channels": [8, 16, 24, 32], "zero_init_last": False}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
}
TRANSFORMERS = [kind for kind in KINDS if kind.startswith(("vit", "deit", "eva"))]


def tiny_model_config(kind: str, **changes: Any) -> ModelConfig:
    """The model section of the kind's tiny network."""
    backbone, options = KINDS[kind]
    settings = {
        "backbone": backbone,
        "weights": "none",
        "backbone_options": options,
        "aux_layer": -2,
        "normalisation": "imagenet",
        "decoder_channels": 16,
        "decoder_dilation": 1,
        "freeze_position_embedding": False,
    }
    return ModelConfig(**{**settings, **changes})


def tiny_network(kind: str, **changes: Any) -> CosaNetwork:
    """Three foreground classes, random weights."""
    network = build_network(tiny_model_config(kind, **changes), classes=3, seed=5)
    if kind == "swinv2":
        awaken(network)
    return network


def awaken(network: nn.Module) -> None:
    """Let SwinV2's blocks add something: their norms start at zero."""
    for name, parameter in network.named_parameters():
        if name.endswith(("norm1.weight", "norm2.weight")):
            nn.init.constant_(parameter, 0.5)
