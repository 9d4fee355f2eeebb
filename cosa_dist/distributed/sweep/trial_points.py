"""The trials of a random or grid sweep as a list that is known before anything starts.

A pure function of space, number and seed: a sweep that is taken up again asks for the same trials, and a
trial is known by its options alone, so what is finished is found again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Space = Mapping[str, tuple[str, list[Any]]]
Options = dict[str, Any]
DIGITS = 6
"""Significant digits of a drawn number; what is written down is what is trained."""


def trial_points(space: Space, trials: int, seed: int) -> list[Options]:
    """Draw the trials of a space.

    Args:
        space: `{dotted option: (distribution, values)}` as `read_space` gives it.
        trials: number of draws; a space with grids has that many draws for every point of the grid.
        seed: of the draws.

    Returns:
        Options of each trial, equal ones once only.
    """
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
    text = json.dumps({key: options[key] for key in sorted(options)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _draw(kind: str, values: list[Any], generator: np.random.Generator) -> Any:
    if kind == "choice":
        return values[int(generator.integers(len(values)))]
    low, high = values
    if kind == "loguniform":
        return _rounded(math.exp(generator.uniform(math.log(low), math.log(high))))
    return _rounded(generator.uniform(low, high))


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
