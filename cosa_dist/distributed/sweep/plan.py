"""What a sweep is, as one file in its folder: base configuration, trials or space, search and scheduler.

Written once before anything starts. `--resume` reads it, so that a sweep is resumed as it was started,
whatever its command line says then; a sweep's name is never used twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cosa_dist.atomic import atomic_write
from cosa_dist.config.ablation import Combination
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.loading import build_config, merge, nested
from cosa_dist.config.options import flatten
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.sweep.space import trial_id

PLAN_FILE = "sweep.json"
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
    return [key for key in wanted if wanted[key] != found[key] and not key.startswith("distributed.")]


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
        return SweepPlan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no plan of a sweep: {where}: {first['msg']}") from None
