"""Search spaces as data, and the trials that are drawn from them.

losses.cam_to_seg: {loguniform: [0.03, 0.3]}
assignment.threshold.low: {choice: [0.2, 0.25, 0.3]}

The trials of a random or grid sweep are a pure function of space, number and seed: a sweep that is resumed
asks for the same ones, and a trial is known by its options alone, so what is finished is found again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cosa_dist.config.errors import ConfigError, unknown_option
from cosa_dist.config.loading import build_config, merge, nested, read_yaml
from cosa_dist.config.options import known_keys
from cosa_dist.config.schema import RunConfig

KINDS = ("uniform", "loguniform", "choice", "grid")
Space = Mapping[str, tuple[str, list[Any]]]
"""`{dotted option: (distribution, values)}`"""
Options = dict[str, Any]


def read_space(path: Path) -> dict[str, tuple[str, list[Any]]]:
    """Read a search space; `ConfigError` for an unknown option or distribution, or values that make none."""
    space = {}
    known = known_keys()
    for key, entry in read_yaml(path).items():
        if key not in known:
            raise ConfigError(f"{path}: {unknown_option(str(key), known)}")
        if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in KINDS:
            raise ConfigError(f"{path}: {key} needs one of {', '.join(KINDS)}, got {entry!r}")
        kind, values = next(iter(entry.items()))
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key}: {kind} needs a list of values, got {values!r}")
        if kind in ("uniform", "loguniform"):
            numbers = all(isinstance(value, int | float) for value in values)
            if len(values) != 2 or not numbers or values[0] >= values[1]:
                raise ConfigError(f"{path}: {key}: {kind} needs [low, high], got {values!r}")
            if kind == "loguniform" and values[0] <= 0:
                raise ConfigError(f"{path}: {key}: loguniform needs a positive low, got {values!r}")
        space[key] = (kind, values)
    if not space:
        raise ConfigError(f"{path} names no option to search")
    return space


def check_space(space: Space, base: RunConfig, source: str) -> None:
    """Refuse values that the configuration itself would refuse, before anything starts."""
    for key, (_, values) in space.items():
        for value in values:
            build_config(merge(base.model_dump(), nested({key: value})), f"{source}: {key} = {value}")


def tune_space(space: Space) -> dict[str, Any]:
    """Ray Tune's search space."""
    from ray import tune

    one_by_one = {"choice": tune.choice, "grid": tune.grid_search}
    return {
        key: one_by_one[kind](values) if kind in one_by_one else getattr(tune, kind)(*values)
        for key, (kind, values) in space.items()
    }


def trial_points(space: Space, trials: int, seed: int) -> list[Options]:
    """Draw the options of `trials` trials, or of so many for every grid point; equal ones once."""
    generator = np.random.default_rng(seed)
    grids = {key: values for key, (kind, values) in space.items() if kind == "grid"}
    drawn = {key: entry for key, entry in space.items() if entry[0] != "grid"}
    points: dict[str, Options] = {}
    for _ in range(trials if drawn else 1):
        # One draw for every grid point: a grid's points are compared under equal other options.
        sample = {key: _draw(kind, values, generator) for key, (kind, values) in drawn.items()}
        for combination in itertools.product(*grids.values()):
            chosen = {**dict(zip(grids, combination, strict=True)), **sample}
            options = {key: chosen[key] for key in space}
            points.setdefault(trial_id(options), options)
    return list(points.values())


def trial_id(options: Mapping[str, Any]) -> str:
    """Short name of a trial, a function of its options alone."""
    text = json.dumps(dict(options), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _draw(kind: str, values: list[Any], generator: np.random.Generator) -> Any:
    """One value; numbers have six significant digits, so that what is written down is what is trained."""
    if kind == "choice":
        return values[int(generator.integers(len(values)))]
    low, high = values
    if kind == "loguniform":
        number = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        number = generator.uniform(low, high)
    return float(f"{number:.6g}")
