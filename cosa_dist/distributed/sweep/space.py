"""Search spaces as data: dotted options with a distribution each, checked against the configuration.

losses.cam_to_seg: {loguniform: [0.03, 0.3]}
assignment.threshold.low: {choice: [0.2, 0.25, 0.3]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cosa_dist.config.errors import ConfigError, unknown_option
from cosa_dist.config.loading import build_config, merge, nested, read_yaml
from cosa_dist.config.options import known_keys
from cosa_dist.config.schema import RunConfig

KINDS = ("uniform", "loguniform", "choice", "grid")


def read_space(path: Path) -> dict[str, tuple[str, list[Any]]]:
    """Read a search space: `{dotted option: (distribution, values)}`.

    Raises:
        ConfigError: an unknown option or distribution, or values that make none.
    """
    space = {}
    known = known_keys()
    for key, entry in read_yaml(path).items():
        if key not in known:
            raise ConfigError(f"{path}: {unknown_option(key, known)}")
        if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in KINDS:
            raise ConfigError(f"{path}: {key} needs one of {', '.join(KINDS)}, got {entry!r}")
        kind, values = next(iter(entry.items()))
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key}: {kind} needs a list of values, got {values!r}")
        if kind in ("uniform", "loguniform"):
            numbers = all(isinstance(v, int | float) for v in values)
            if len(values) != 2 or not numbers or values[0] >= values[1]:
                raise ConfigError(f"{path}: {key}: {kind} needs [low, high], got {values!r}")
            if kind == "loguniform" and values[0] <= 0:
                raise ConfigError(f"{path}: {key}: loguniform needs a positive low, got {values!r}")
        space[key] = (kind, values)
    if not space:
        raise ConfigError(f"{path} names no option to search")
    return space


def check_space(space: Mapping[str, tuple[str, list[Any]]], base: RunConfig, source: str) -> None:
    """Refuse values that the configuration itself would refuse, before anything starts.

    Raises:
        ConfigError: naming the option and the value.
    """
    for key, (_, values) in space.items():
        for value in values:
            build_config(merge(base.model_dump(), nested({key: value})), f"{source}: {key} = {value}")


def tune_space(space: Mapping[str, tuple[str, list[Any]]]) -> dict[str, Any]:
    """Ray Tune's search space."""
    from ray import tune

    makers: dict[str, Callable[[list[Any]], Any]] = {
        "uniform": lambda values: tune.uniform(*values),
        "loguniform": lambda values: tune.loguniform(*values),
        "choice": tune.choice,
        "grid": tune.grid_search,
    }
    return {key: makers[kind](values) for key, (kind, values) in space.items()}
