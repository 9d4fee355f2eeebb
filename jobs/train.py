"""Train one CoSA run: `python jobs/train.py --recipe voc_mini --data.shards SHARDS [--a.b VALUE ...]`.

The same command runs on a laptop, as `ray job submit --working-dir . -- python jobs/train.py ...` on a Ray
cluster, and inside `slurm/cosa.sh`. `--resume NAME` continues an interrupted run, and `--restarted` the one
that an earlier start of the same command has begun, if any; `--print-config` shows the resolved configuration
and stops, and `--plan 4x8x96` how a machine of so many nodes, GPUs and CPUs of each would share the run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING

from cosa_dist.config.command_line import given, make_parser, refuse_beside_resume, run_job
from cosa_dist.config.errors import ConfigError, Start, starting
from cosa_dist.config.loading import load_config, parse_overrides, to_yaml
from cosa_dist.config.paths import absolute
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.cluster import prepare_environment

if TYPE_CHECKING:
    from cosa_dist.distributed.launch import Outcome


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prepare or resume the run that the command line asks for, execute it, and print its outcome."""
    prepare_environment()  # before PyTorch is imported
    with starting() as start:
        outcome: Outcome | None
        overrides = parse_overrides(rest)
        if arguments.resume:
            refuse_beside_resume(arguments, ("recipe", "config", "restarted", "print_config", "plan"))
            output = absolute(str(overrides.get("output", "outputs")), "output", True)
            outcome = execute(RunConfig(name=arguments.resume, output=output), overrides, start)
        else:
            config = load_config(arguments.recipe, arguments.config, rest)
            if arguments.print_config:
                print(to_yaml(config), end="")
            if arguments.plan:
                print_plan(config, arguments.plan)
            if arguments.print_config or arguments.plan:
                return
            outcome = start_or_restart(config, overrides, arguments.restarted, start)
    if outcome is None:
        return
    from cosa_dist.evaluation.report import as_text

    print(as_text(list(outcome.reports.values()), per_class=False))
    print(f"run folder  {outcome.folder}")
    print(f"pictures    {outcome.folder / 'pictures'}")
    print(f"MLflow      {outcome.tracking_uri or 'off'}  run {outcome.run_id or '-'}")


def print_plan(config: RunConfig, machine: str) -> None:
    """Print, as comments of YAML, how a described machine would share each stage.

    Raises `ConfigError` if it cannot.
    """
    from cosa_dist.distributed.plan import described_nodes, total
    from cosa_dist.distributed.prepare import plan_stages

    nodes = described_nodes(machine)
    for stage, plan in plan_stages(config, total(nodes), nodes, complete=True).items():
        print(f"# {stage}{': ' if stage else ''}{plan.describe()}")


def start_or_restart(
    config: RunConfig, overrides: Mapping[str, object], restarted: bool, start: Start
) -> Outcome | None:
    """Execute a new run, or the one that an earlier start of this command has begun; None if that is over."""
    if restarted and not config.name:
        raise ConfigError("--restarted: without --name the run of the earlier start cannot be found")
    from cosa_dist.distributed.prepare import already_started, resolve
    from cosa_dist.distributed.run_folder import RunFolder

    config = resolve(config)
    if not restarted or not already_started(config):
        return execute(config, None, start)
    if RunFolder.of(config).read_note().finished:
        print(f"run {config.name} is finished already")
        return None
    workers = {key: value for key, value in overrides.items() if key.startswith("distributed.")}
    return execute(config, workers, start)


def execute(config: RunConfig, resume_with: Mapping[str, object] | None, start: Start) -> Outcome:
    """Execute a new run, or resume the one of this name; Ray, if needed, is up before anything is made."""
    from cosa_dist.distributed import cluster, launch
    from cosa_dist.distributed.plan import await_resources, node_resources
    from cosa_dist.distributed.prepare import plan_stages, prepare_run, reopen
    from cosa_dist.distributed.run_folder import RunFolder

    with ExitStack() as until_the_end:
        resources: dict[str, float] = {}

        def start_ray(checked: RunConfig) -> None:
            if launch.runs_here(checked, machine := cluster.machine_resources()):
                resources.update(machine)
                return
            with ThreadPoolExecutor(1) as meanwhile:  # Ray's start is waiting, MLflow's import is not
                if checked.tracking.enabled:
                    meanwhile.submit(import_module, "mlflow.store.tracking.sqlalchemy_store")
                resources.update(until_the_end.enter_context(cluster.ray_cluster()))
            for plan in plan_stages(checked, resources, node_resources()).values():
                await_resources(plan, checked.distributed.placement_deadline)

        if resume_with is None:
            prepared = prepare_run(config, ready=start_ray)
        else:
            prepared = reopen(RunFolder.of(config), resume_with, start_ray)
        start.made = True
        logging.info("run folder %s", prepared.folder.path)
        return launch.execute(prepared, resources)


def main() -> int:
    """Return the exit code: 0 done, 1 the run failed, 2 it could not start."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--resume", type=given, metavar="NAME", help="continue the interrupted run NAME")
    parser.add_argument(
        "--restarted",
        action="store_true",
        help="a scheduler starts the same command again: continue the run of this name if there is one",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved configuration and stop"
    )
    parser.add_argument(
        "--plan",
        type=given,
        metavar="NODESxGPUSxCPUS",
        help="show how a machine would share the run, and stop; GPUs and CPUs are those of a node",
    )
    return run_job(parser, run)


if __name__ == "__main__":
    sys.exit(main())
