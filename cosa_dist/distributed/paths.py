"""Absolute paths and the run folder.

Ray workers and jobs run in temporary working directories, so every path of a configuration is made
absolute in the driver, before anything starts. A relative path inside such a temporary copy would be lost
with it and is refused, unless `COSA_ROOT` names the folder that relative paths start from.
"""

from __future__ import annotations

import os
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig


def absolute(text: str, option: str, must_last: bool = False) -> str:
    """Make a local path absolute; URLs (`s3://`, `http://`) stay.

    Args:
        text: the path as given.
        option: its option, for the message.
        must_last: something is written there that has to outlive the job.

    Raises:
        ConfigError: relative inside the temporary copy that a Ray job runs in.
    """
    if "://" in text or not text:
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    root = os.environ.get("COSA_ROOT")
    base = Path(root).expanduser().resolve() if root else Path.cwd()
    if not root and must_last and "_ray_pkg_" in str(base):
        raise ConfigError(
            f"--{option} {text!r} is relative, but this job runs in a temporary copy of the "
            "checkout: give an absolute path, or set COSA_ROOT to the folder that relative paths "
            "start from"
        )
    return str(base / path)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with every local path absolute.

    Raises:
        ConfigError: see `absolute`.
    """
    weights = config.model.weights
    if "/" in weights or weights.endswith((".pth", ".pt", ".bin", ".safetensors")):
        weights = absolute(weights, "model.weights")
    data = config.data.model_copy(
        update={
            "shards": absolute(config.data.shards, "data.shards", True),
            "cache": absolute(config.data.cache, "data.cache"),
        }
    )
    return config.model_copy(
        update={
            "output": absolute(config.output, "output", True),
            "data": data,
            "model": config.model.model_copy(update={"weights": weights}),
            "stage_one": config.stage_one.model_copy(
                update={"run": absolute(config.stage_one.run, "stage_one.run")}
            ),
        }
    )


def run_folder(config: RunConfig) -> Path:
    """The folder that owns a run's configuration, checkpoints, pictures and metrics."""
    return Path(config.output) / "runs" / config.name
