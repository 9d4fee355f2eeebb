"""Train one CoSA run: `python jobs/train.py --recipe voc_mini --data.shards SHARDS [--a.b VALUE ...]`.

The same command runs on a laptop, as `ray job submit --working-dir . -- python jobs/train.py ...` on a Ray
cluster, and inside `slurm/cosa.sh`. `--resume NAME` continues an interrupted run, and `--restarted` the one
that an earlier start of the same command has begun, if any; `--print-config` shows the resolved configuration
and stops.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cosa_dist.config.command_line import given, make_parser, refuse_beside_resume, run_job
from cosa_dist.config.errors import Start, starting
from cosa_dist.config.loading import load_config, parse_overrides, to_yaml
from cosa_dist.config.schema import RunConfig

if TYPE_CHECKING:
    from cosa_dist.distributed.launch import Outcome


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prepare and launch the run that the command line asks for, and print its outcome."""
    with starting() as start:
        conduct(arguments, rest, start)


def conduct(arguments: argparse.Namespace, rest: list[str], start: Start) -> None:
    """The work of `run`; `start` hears of the run folder."""
    overrides = parse_overrides(rest)
    if arguments.resume:
        refuse_beside_resume(arguments, ("recipe", "config", "restarted", "print_config"))
    elif arguments.print_config:
        print(to_yaml(load_config(arguments.recipe, arguments.config, rest)), end="")
        return
    name, config = arguments.resume, None
    if not name:
        config = load_config(arguments.recipe, arguments.config, rest)
    from cosa_dist.distributed.prepare import begun, read_note
    from cosa_dist.distributed.run_folder import run_folder, with_absolute_paths
    from cosa_dist.evaluation.report import as_text

    if config is not None and arguments.restarted and begun(config):
        if read_note(run_folder(with_absolute_paths(config)))["finished"]:
            print(f"run {config.name} is finished already")
            return
        kept = {key: value for key, value in overrides.items() if key.startswith("distributed.")}
        name, overrides, config = config.name, {**kept, "output": config.output}, None
    outcome = trained(config, name, overrides, start)
    print(as_text(list(outcome.reports.values()), per_class=False))
    print(f"run folder  {outcome.folder}")
    print(f"pictures    {outcome.folder / 'pictures'}")
    print(f"MLflow      {outcome.tracking_uri or 'off'}  run {outcome.run_id or '-'}")


def trained(config: RunConfig | None, name: str, overrides: dict[str, Any], start: Start) -> Outcome:
    """Prepare a new run, or take up the run `name`, and launch it; Ray is up before anything is made."""
    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.plan import await_resources, node_resources, plan_workers
    from cosa_dist.distributed.prepare import PreparedRun, prepare_run, reopen
    from cosa_dist.distributed.stages import (
        StagedRun,
        conduct_stages,
        is_staged,
        prepare_staged,
        reopen_staged,
    )

    resources: dict[str, float] = {}
    with ExitStack() as until_the_end:

        def cluster(checked: RunConfig) -> None:
            resources.update(until_the_end.enter_context(ray_cluster()))
            plan = plan_workers(checked, resources, node_resources())
            await_resources(plan, checked.distributed.placement_deadline)

        prepared: PreparedRun | StagedRun
        if config is None:
            output = str(overrides.get("output", "outputs"))
            staged = reopen_staged(name, output, overrides, cluster)
            prepared = staged or reopen(name, output, overrides, cluster)
        else:
            prepared = (prepare_staged if is_staged(config) else prepare_run)(config, ready=cluster)
        start.made = True
        logging.info("run folder %s", prepared.folder)
        if isinstance(prepared, StagedRun):
            return conduct_stages(prepared, resources)
        return launch(prepared, resources)


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
    return run_job(parser, run)


if __name__ == "__main__":
    sys.exit(main())
