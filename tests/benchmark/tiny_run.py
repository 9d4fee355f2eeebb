"""A tiny run and its batches for tests of the benchmark."""

from __future__ import annotations

from typing import Any

from cosa_dist.config.loading import build_config, merge
from cosa_dist.config.schema import RunConfig

SETTINGS: dict[str, Any] = {
    "recipe": "tiny",
    "data": {"shards": "nowhere/voc", "crop_size": 32, "loader_workers": 0},
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "weights": "none",
        "aux_layer": -2,
        "decoder_channels": 16,
        "decoder_dilation": 1,
        "backbone_options": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
        "freeze_position_embedding": False,
    },
    "assignment": {
        "momentum": 0.9,
        "threshold": {"low": 0.45, "high": 0.5, "aux_low": 0.45, "aux_high": 0.5},
    },
    "losses": {"warmup_steps": 2, "energy": 1.0, "energy_kernel": {"weight": 1e-4}},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "training": {"steps": 10, "global_batch_size": 4, "precision": "fp32"},
    "evaluation": {"every": 0, "size": 32, "scales": [1.0], "batch_size": 4},
}


def tiny_config(**sections: Any) -> RunConfig:
    """The tiny run with changes by section."""
    return build_config(merge(SETTINGS, sections))
