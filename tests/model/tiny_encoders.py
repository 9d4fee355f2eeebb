"""One tiny random network of each kind of encoder."""

from __future__ import annotations

from typing import Any

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
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "resnet": ("resnet10t", {"channels": [8, 16, 24, 32], "zero_init_last": False}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
}
TRANSFORMERS = [kind for kind in KINDS if kind.startswith(("vit", "deit"))]


def tiny_model_config(kind: str, **changes: Any) -> ModelConfig:
    """The model section of the kind's tiny network."""
    backbone, options = KINDS[kind]
    settings = {
        "backbone": backbone,
        "weights": "none",
        "backbone_options": options,
        "aux_layer": -2,
        "decoder_channels": 16,
        "decoder_dilation": 1,
        "freeze_position_embedding": False,
    }
    return ModelConfig(**{**settings, **changes})


def tiny_network(kind: str, **changes: Any) -> CosaNetwork:
    """Three foreground classes, random weights."""
    return build_network(tiny_model_config(kind, **changes), classes=3, seed=5)
