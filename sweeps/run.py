"""Sweep over a recipe: `python sweeps/run.py --space loss_weights --recipe voc_mini --trials 8`.

`--space` names a file of this folder (loss_weights, threshold_search, ablation) or a path. Each trial is a
whole Ray Train run; trials are child runs of the sweep in MLflow. `--search random` draws the trials of the
space (grids in full), `optuna` lets a tree-structured Parzen estimator choose them. `--scheduler asha`
stops weak trials at their evaluations. `--warm-start` trains the loss warm-up once for all trials.
`--space ablation --seeds 0 1 2` trains every combination of the method's parts with every seed, to the end,
and prints their table (docs/tables.py stores its rows).
`--resume NAME` goes on with a sweep that was interrupted at any moment; what is finished is not trained
again; `--restarted` does the same if an earlier start of the same command has begun one. Ends with the table
of trials, a page of plots and the best configuration as a YAML that `jobs/train.py --config` takes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosa_dist.config.ablation import is_ablation, read_ablation
from cosa_dist.config.command_line import given, make_parser, refuse_beside_resume, run_job
from cosa_dist.config.errors import ConfigError, Start, starting
from cosa_dist.config.loading import is_recipe_file, load_config, parse_overrides, to_yaml
from cosa_dist.config.paths import absolute, place
from cosa_dist.config.schema import RunConfig

if TYPE_CHECKING:
    from cosa_dist.distributed.sweep.plan import SweepPlan

HERE = Path(__file__).parent


def space_path(name: str) -> Path:
    """File of a named space, or the path itself."""
    return place(name) if is_recipe_file(name) else HERE / f"{name}.yaml"


def requested_plan(arguments: argparse.Namespace, config: RunConfig) -> SweepPlan:
    """The plan that the command line asks for; `ConfigError` for a space or an option that cannot work."""
    from cosa_dist.distributed.sweep.plan import SweepPlan, check_space, read_space, trial_id, trial_points

    path = space_path(arguments.space)
    chosen: dict[str, Any] = {"points": [], "search": arguments.search, "scheduler": arguments.scheduler}
    if is_ablation(path):
        combinations = read_ablation(path).chosen(arguments.only)
        chosen["points"] = [combination.options for combination in combinations]
        # Every combination counts in the table, so none is stopped.
        chosen |= {"ablation": combinations, "search": "grid", "scheduler": "none"}
    elif arguments.only:
        raise ConfigError(f"--only chooses combinations of an ablation; {path} is a search space")
    else:
        space = read_space(path)
        check_space(space, config, str(path))
        if arguments.search == "optuna":
            chosen["space"] = space
        else:
            chosen["points"] = trial_points(space, arguments.trials, config.seed)
    if arguments.seeds and "space" in chosen:
        raise ConfigError("--seeds: --search optuna chooses trials of one seed; set it with --seed")
    if arguments.seeds:
        points = ({**point, "seed": seed} for seed in arguments.seeds for point in chosen["points"])
        chosen["points"] = list({trial_id(point): point for point in points}.values())
    if arguments.cost and "space" not in chosen:
        raise ConfigError("--cost is an objective of --search optuna only")
    return SweepPlan(
        base=config.model_dump(mode="json"),
        trials=arguments.trials,
        objectives=("miou_unfiltered", "worker_seconds") if arguments.cost else ("miou_unfiltered",),
        warm_start=arguments.warm_start,
        **chosen,
    )


def new_plan(arguments: argparse.Namespace, config: RunConfig) -> SweepPlan:
    """Plan of a new sweep; `ConfigError` for what cannot work, or a name that is used."""
    from cosa_dist.distributed.sweep.plan import check_plan
    from cosa_dist.distributed.sweep.trial import check_warm_start

    plan = requested_plan(arguments, config)
    check_plan(plan)
    if plan.warm_start:
        check_warm_start(config, plan.keys)
    return plan


def started_plan(arguments: argparse.Namespace, rest: list[str]) -> SweepPlan | None:
    """Plan of the sweep that `--resume` names or that an earlier start of the same command has begun.

    Raises `ConfigError` for no such sweep, or other options than it was begun with.
    """
    from cosa_dist.distributed.sweep.plan import PLAN_FILE, different_settings, read_plan, sweep_folder

    if arguments.resume:
        refuse_beside_resume(arguments, ("recipe", "config", "restarted", "print_config"))
        overrides = parse_overrides(rest)
        defaults, own = (
            parser(),
            ("space", "trials", "search", "scheduler", "cost", "warm_start", "seeds", "only"),
        )
        changed = [key for key in overrides if key != "output"]
        changed += [name for name in own if getattr(arguments, name) != defaults.get_default(name)]
        if changed:
            words = ", ".join(f"--{name}" for name in changed).replace("warm_start", "warm-start")
            raise ConfigError(f"{words}: a sweep that is taken up again keeps its plan")
        output = absolute(str(overrides.get("output", "outputs")), "output", True)
        return read_plan(sweep_folder(RunConfig(name=arguments.resume, output=output)))
    if not arguments.restarted:
        return None
    config = base_config(arguments, rest)
    if not (sweep_folder(config) / PLAN_FILE).is_file():
        return None
    plan = read_plan(sweep_folder(config))
    others = different_settings(requested_plan(arguments, config), plan)
    if others:
        raise ConfigError(
            f"sweep {plan.name} has another {', '.join(others)} than asked for: it was not begun by "
            "this command; choose another --name"
        )
    return plan


def load_base(arguments: argparse.Namespace, rest: list[str]) -> RunConfig:
    """The configuration that trials change; an ablation's defaults are below the command line's options."""
    config = load_config(arguments.recipe, arguments.config, rest)
    path = space_path(arguments.space)
    if not is_ablation(path):
        return config
    defaults = read_ablation(path).defaults
    return load_config(arguments.recipe, arguments.config, {**defaults, **parse_overrides(rest)}, str(path))


def base_config(arguments: argparse.Namespace, rest: list[str]) -> RunConfig:
    """The base configuration with a sweep's name and absolute paths."""
    from cosa_dist.distributed.prepare import resolve

    config = load_base(arguments, rest)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = config.name or f"sweep-{space_path(arguments.space).stem}-{config.recipe}-{stamp}"
    return resolve(config.model_copy(update={"name": name}))


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Plan a sweep or read its plan, run it, print its outcome."""
    with starting() as start:
        plan_and_run(arguments, rest, start)


def plan_and_run(arguments: argparse.Namespace, rest: list[str], start: Start) -> None:
    """The work of `run`; `start` hears of the sweep's folder."""
    if arguments.print_config and not arguments.resume:
        config = load_base(arguments, rest)
        new_plan(arguments, config.model_copy(update={"name": config.name or "sweep"}))
        print(to_yaml(config), end="")
        return
    started = started_plan(arguments, rest)
    plan = started or new_plan(arguments, base_config(arguments, rest))

    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.plan import node_resources
    from cosa_dist.distributed.prepare import check_inputs, check_places, fetch_weights
    from cosa_dist.distributed.sweep.run import concurrent_trials, create_sweep, run_sweep, share_cpus
    from cosa_dist.reports.leaderboard_views import print_cells
    from cosa_dist.reports.sweep_page import trial_cells, write_outcome
    from cosa_dist.tracking.provenance import usable_cpus

    if not started:
        check_places(plan.config)
    for config in plan.configs:
        check_inputs(config)
        fetch_weights(config)
    # A private cluster gets one more logical CPU, for the trial's driver, which only waits.
    with ray_cluster(num_cpus=usable_cpus() + 1, include_dashboard=True) as resources:
        if not started:
            plan = share_cpus(plan, resources, node_resources())
            concurrent_trials(plan.config, node_resources())
            plan = create_sweep(plan)
        start.made = True
        logging.info("sweep %s: %s", plan.name, plan.folder)
        result = run_sweep(plan, resources)
    print_cells(trial_cells(plan, result.trials))
    for path in write_outcome(plan, result):
        print(f"written {path}")
    if plan.ablation:
        from cosa_dist.reports.result_tables import write_ablation

        path, table = write_ablation(plan, result, arguments.context_class)
        print(f"written {path}\n\n{table}\n")
    best = result.trials[0].miou
    print(f"best{'' if best is None else f' {best:.2f}'}: {result.best_config}")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(__doc__ or "")
    made.add_argument(
        "--space", default="loss_weights", help="loss_weights, threshold_search, ablation or a file"
    )
    made.add_argument("--trials", type=int, default=8, help="number of draws (grids: of each point)")
    made.add_argument(
        "--search", choices=("random", "optuna"), default="random", help="who chooses the trials"
    )
    made.add_argument("--scheduler", choices=("asha", "none"), default="asha", help="who stops weak ones")
    made.add_argument("--seeds", type=int, nargs="+", default=[], help="every trial with each of these seeds")
    made.add_argument("--only", nargs="+", default=[], help="ablation: combinations to train (default: all)")
    made.add_argument(
        "--context-class", default="", help="ablation: coexisting class in the table (generated data: train)"
    )
    made.add_argument("--cost", action="store_true", help="optuna: also look for low cost (worker-seconds)")
    made.add_argument("--warm-start", action="store_true", help="train the loss warm-up once for all trials")
    made.add_argument("--resume", type=given, metavar="NAME", help="go on with the sweep NAME")
    made.add_argument(
        "--restarted",
        action="store_true",
        help="a scheduler starts the same command again: go on with the sweep of this name if there is one",
    )
    made.add_argument(
        "--print-config", action="store_true", help="check the plan, show its base configuration and stop"
    )
    return made


def main() -> int:
    """Return the exit code: 0 done, 1 failed, 2 it could not start, 130 interrupted."""
    return run_job(parser(), run, what="sweep")


if __name__ == "__main__":
    sys.exit(main())
