"""The absolute paths of a configuration, and the run folder."""

from __future__ import annotations

from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import is_recipe_file
from cosa_dist.config.method import names_a_file
from cosa_dist.config.paths import absolute
from cosa_dist.config.schema import RunConfig
from cosa_dist.tracking.store import MEMORY, SQLITE

LONGEST_NAME = 200
"""bytes; what is made beside a run bears a longer one, and file systems end at 255"""


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with every local path absolute.

    Raises:
        ConfigError: see `absolute`; or the run's name cannot be that of a folder.
    """
    name = config.name
    if "/" in name or name.startswith(".") or not (name.isprintable() and len(name.encode()) <= LONGEST_NAME):
        raise ConfigError(
            f"--name {name[:80]!r}: a run's folder bears its name: leave out '/', a dot at its beginning and "
            f"control characters, and keep it below {LONGEST_NAME} letters"
        )
    weights, uri, first = config.model.weights, config.tracking.uri, config.stage_one.recipe
    if names_a_file(weights):
        weights = absolute(weights, "model.weights")
    if is_recipe_file(first):
        first = absolute(first, "stage_one.recipe")
    if uri.startswith(SQLITE) and uri != SQLITE + MEMORY:
        uri = SQLITE + absolute(uri.removeprefix(SQLITE), "tracking.uri", True)
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
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "stage_one": config.stage_one.model_copy(
                update={"recipe": first, "run": absolute(config.stage_one.run, "stage_one.run")}
            ),
        }
    )


def run_folder(config: RunConfig) -> Path:
    """The folder that owns a run's configuration, checkpoints, pictures and metrics."""
    return Path(config.output) / "runs" / config.name
