"""What a sweep is, as one file in its folder: base configuration, trials or space, search and scheduler.

Written once before anything starts. `--resume` reads it, so that a sweep is taken up as it was begun
whatever has become of its command line; a sweep's name is never used twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cosa_dist.atomic import atomic_write
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.loading import build_config
from cosa_dist.config.options import flatten
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.sweep.trial import trial_config

PLAN_FILE = "sweep.json"
FOUND_LATER = ("base", "parent_run_id", "tracking_uri")
"""fields of a plan that the command line does not decide, or that `flatten` takes apart"""
OF_THE_SWEEP = ("name", "output")
"""options that no trial can have of its own"""
Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "none"]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was begun."""

    base: dict[str, Any]
    """configuration that trials change; absolute paths, with the sweep's name"""
    points: list[dict[str, Any]]
    """options of every trial; empty if a search algorithm finds them"""
    space: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)
    """`{dotted option: (distribution, values)}` for a search algorithm"""
    trials: int = 0
    """number of trials of a search algorithm"""
    search: Search = "random"
    scheduler: Scheduler = "asha"
    objectives: tuple[str, ...] = ("miou_unfiltered",)
    """what a search algorithm improves; with `worker_seconds` it also looks for low cost"""
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
    def keys(self) -> list[str]:
        """Options that differ between trials, in a steady order."""
        if self.space:
            return list(self.space)
        return list(dict.fromkeys(key for point in self.points for key in point))


def sweep_folder(base: RunConfig) -> Path:
    """Folder of a sweep's plan, outcome and Tune's own state."""
    return Path(base.output) / "sweeps" / base.name


def check_plan(plan: SweepPlan) -> None:
    """Refuse what would fail or mean nothing later.

    Raises:
        ConfigError: a trial that contradicts itself, or a scheduler without evaluations to decide by.
    """
    config = plan.config
    refuse_used_name(config)
    for key in plan.keys:
        if key in OF_THE_SWEEP:
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
    if not every:
        return config.training.steps
    return every * (config.losses.warmup_steps // every + 1)


def refuse_used_name(base: RunConfig) -> None:
    """Refuse a name that a sweep has already.

    Raises:
        ConfigError: saying how to go on with it.
    """
    folder = sweep_folder(base)
    if (folder / PLAN_FILE).is_file():
        raise ConfigError(
            f"a sweep named {base.name} is already in {folder.parent}: continue it with "
            f"--resume {base.name}, or choose another --name"
        )


def other_settings(asked: SweepPlan, begun: SweepPlan) -> list[str]:
    """What a sweep that was begun has otherwise than a plan asks for, but for workers and where they run."""

    def settings(plan: SweepPlan) -> dict[str, Any]:
        own = asdict(plan) | flatten(plan.config)
        return json.loads(json.dumps({k: v for k, v in own.items() if k not in FOUND_LATER}))  # type: ignore[no-any-return]

    wanted, found = settings(asked), settings(begun)
    return [key for key in wanted if wanted[key] != found[key] and not key.startswith("distributed.")]


def write_plan(plan: SweepPlan) -> Path:
    """Create the sweep's folder with its plan and return it.

    Raises:
        ConfigError: a sweep of this name is there already.
    """
    refuse_used_name(plan.config)
    folder = sweep_folder(plan.config)
    atomic_write(folder / PLAN_FILE, json.dumps(asdict(plan), indent=1))
    return folder


def read_plan(folder: Path) -> SweepPlan:
    """Read a sweep's plan.

    Raises:
        ConfigError: no such sweep, or a file that is no plan.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        others = [found.parent.name for found in folder.parent.glob(f"*/{PLAN_FILE}")]
        raise ConfigError(f"no sweep named {folder.name!r} in {folder.parent}{nearest(folder.name, others)}")
    try:
        return _restored(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is no plan of a sweep: {error}") from None


def _restored(values: Mapping[str, Any]) -> SweepPlan:
    space = {key: (str(kind), list(choices)) for key, (kind, choices) in values["space"].items()}
    return SweepPlan(**{**values, "space": space, "objectives": tuple(values["objectives"])})
