"""A tiny run and its batches for tests of the benchmark."""

from __future__ import annotations

from typing import Any

from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.config.schema import RunConfig

CHANGES: dict[str, Any] = {
    "data": {"shards": "nowhere/voc"},
    "assignment": {"threshold": {"low": 0.45, "high": 0.5, "aux_low": 0.45, "aux_high": 0.5}},
    "losses": {"warmup_steps": 2, "energy": 1.0, "energy_kernel": {"weight": 1e-4}},
    "optimizer": {"warmup_steps": 1},
    "training": {"precision": "fp32"},
    "evaluation": {"batch_size": 4},
}


def tiny_config(**sections: Any) -> RunConfig:
    """The tiny run with changes by section."""
    return build_config(merge(merge(read_recipe("tiny"), CHANGES), sections))
