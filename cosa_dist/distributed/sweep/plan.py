"""What a sweep is, as one file in its folder: base configuration, trials or space, search and scheduler.

Written once before anything starts. `--resume` reads it, so that a sweep is resumed as it was started,
whatever its command line says then; a sweep's name is never used twice. A search space is a file like

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
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cosa_dist.atomic import atomic_write
from cosa_dist.config.ablation import Combination
from cosa_dist.config.errors import ConfigError, nearest, unknown_option
from cosa_dist.config.loading import build_config, completed, merge, nested, read_yaml
from cosa_dist.config.options import flatten, known_keys, other_options
from cosa_dist.config.schema import RunConfig

PLAN_FILE = "sweep.json"
KINDS = ("uniform", "loguniform", "choice", "grid")
Space = Mapping[str, tuple[str, list[Any]]]
"""`{dotted option: (distribution, values)}`"""
Options = dict[str, Any]
Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "none"]


class SweepPlan(BaseModel):
    """A sweep as it was started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: dict[str, Any]
    """configuration that trials change; absolute paths, with the sweep's name"""
    points: list[dict[str, Any]]
    """options of every trial; empty if a search algorithm finds them"""
    space: dict[str, tuple[str, list[Any]]] = {}
    """`{dotted option: (distribution, values)}` for a search algorithm"""
    trials: int = 0
    """number of trials of a search algorithm"""
    search: Search = "random"
    scheduler: Scheduler = "asha"
    objectives: tuple[str, ...] = ("miou_unfiltered",)
    """what a search algorithm improves; with `worker_seconds` it also looks for low cost"""
    ablation: list[Combination] = []
    """combinations that the points are of, if they are those of an ablation"""
    warm_start: bool = False
    """trials fork from one shared checkpoint at the end of the loss warm-up"""
    parent_run_id: str = ""
    tracking_uri: str = ""

    @property
    def config(self) -> RunConfig:
        """The base configuration, validated."""
        return build_config(self.base, "sweep")

    @property
    def configs(self) -> list[RunConfig]:
        """Those of the trials as far as they are known, else the base configuration."""
        return [trial_config(self.base, point) for point in self.points] or [self.config]

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self.base["name"])

    @property
    def folder(self) -> Path:
        """Folder of the plan, the outcome and Tune's own state."""
        return sweep_folder(self.config)

    def trial_options(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A trial's options from what Tune passes: one by one from a search algorithm, else as a whole."""
        return {key: parameters[key] for key in self.space} if self.space else dict(parameters["options"])

    @property
    def keys(self) -> list[str]:
        """Options that differ between trials, in a steady order."""
        return list(self.space) or list(dict.fromkeys(key for point in self.points for key in point))


def sweep_folder(base: RunConfig) -> Path:
    """Folder of the sweep that has this base configuration."""
    return Path(base.output) / "sweeps" / base.name


def trial_config(base: dict[str, Any], options: dict[str, Any]) -> RunConfig:
    """Configuration of one trial; `ConfigError` for options that contradict each other."""
    name = f"{base['name']}-{trial_id(options)}"
    return build_config({**merge(base, nested(options)), "name": name}, f"trial {options}")


def check_plan(plan: SweepPlan) -> None:
    """Refuse a used name, a trial that contradicts itself, or a scheduler without evaluations to use."""
    config = plan.config
    refuse_used_name(config)
    for key in plan.keys:
        if key in ("name", "output"):
            raise ConfigError(f"{key} is the same for all trials of a sweep: leave it out of the space")
    _ = plan.configs  # each is validated
    if plan.scheduler == "asha":
        if len(plan.objectives) > 1:
            raise ConfigError("asha stops trials by one measure: choose --scheduler none for two objectives")
        if first_comparison(config) >= config.training.steps:
            raise ConfigError(
                "asha needs evaluations between the loss warm-up and the end: set --evaluation.every to "
                f"less than {config.training.steps - config.losses.warmup_steps} (now "
                f"{config.evaluation.every}), or choose --scheduler none"
            )


def first_comparison(config: RunConfig) -> int:
    """Step of the first evaluation after the loss warm-up; before it no segmentation is trained."""
    every = config.evaluation.every
    return every * (config.losses.warmup_steps // every + 1) if every else config.training.steps


def refuse_used_name(base: RunConfig) -> None:
    """Raise `ConfigError` if a sweep has this name already."""
    folder = sweep_folder(base)
    if (folder / PLAN_FILE).is_file():
        raise ConfigError(
            f"a sweep named {base.name} is already in {folder.parent}: continue it with "
            f"--resume {base.name}, or choose another --name"
        )


def different_settings(asked: SweepPlan, started: SweepPlan) -> list[str]:
    """What a started sweep has otherwise than a plan asks for, but for workers and where they run."""

    def settings(plan: SweepPlan) -> dict[str, Any]:
        # What the command line does not decide is left out, and what `flatten` takes apart.
        own = plan.model_dump(mode="json", exclude={"base", "parent_run_id", "tracking_uri"})
        return own | flatten(plan.config)

    wanted, found = settings(asked), settings(started)
    recorded = json.loads((started.folder / PLAN_FILE).read_bytes())
    return other_options(wanted, found, recorded | recorded["base"])


def write_plan(plan: SweepPlan) -> None:
    """Create the sweep's folder with its plan; `ConfigError` if there is a sweep of this name."""
    refuse_used_name(plan.config)
    atomic_write(plan.folder / PLAN_FILE, plan.model_dump_json(indent=1))


def read_plan(folder: Path) -> SweepPlan:
    """Read a sweep's plan; `ConfigError` if there is no such sweep, or a file that is no plan."""
    path = folder / PLAN_FILE
    if not path.is_file():
        others = [found.parent.name for found in folder.parent.glob(f"*/{PLAN_FILE}")]
        raise ConfigError(f"no sweep named {folder.name!r} in {folder.parent}{nearest(folder.name, others)}")
    try:
        plan = SweepPlan.model_validate_json(path.read_bytes())
        return plan.model_copy(update={"base": completed(plan.base)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no plan of a sweep: {where}: {first['msg']}") from None


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
