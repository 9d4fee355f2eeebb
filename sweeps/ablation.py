"""Ablation: `python sweeps/ablation.py --recipe demo --seeds 0 1 2 [--only NAME ...] [--a.b VALUE ...]`.

Trains every combination of `sweeps/ablation.yaml` (or `--space F.yaml`) with every seed and stores one line
of JSON per finished run in `--rows`. A combination and seed that has its line is not trained again, so the
same command continues after an interruption, and several may share the work with different `--only`.
`--table` prints the Markdown table of the rows that are there, and trains nothing. Use another `--rows` for
other options.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from cosa_dist.config.ablation import Ablation, read_ablation
from cosa_dist.config.command_line import make_parser, run_job
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.config.paths import lasting_place, place
from cosa_dist.config.schema import RunConfig
from cosa_dist.reports.ablation_rows import append_row, as_markdown, make_row, read_rows

HERE = Path(__file__).parent


def configurations(
    ablation: Ablation, arguments: argparse.Namespace, rest: list[str]
) -> list[tuple[str, tuple[str, ...], RunConfig]]:
    """Name, parts and configuration of every run that has no row yet; all are validated here."""
    rows = read_rows(arguments.rows)
    load_config(arguments.recipe, arguments.config, rest)  # so that its own mistakes are said of it alone
    overrides = {**ablation.defaults, **parse_overrides(rest)}
    wanted = []
    for seed in arguments.seeds:
        for combination in ablation.chosen(arguments.only):
            options = {**overrides, **combination.options, "seed": seed}
            source = f"{arguments.space}, {combination.name}"
            config = load_config(arguments.recipe, arguments.config, options, source)
            key = (combination.name, seed, config.recipe)
            if key not in {(row.combination, row.seed, row.recipe) for row in rows}:
                wanted.append((combination.name, combination.parts, config))
    return wanted


def train(wanted: list[tuple[str, tuple[str, ...], RunConfig]], path: Path) -> None:
    """Run them one after the other."""
    from cosa_dist.distributed.checks import check_inputs, check_places, check_writable, resolve
    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run
    from cosa_dist.tracking.provenance import provenance

    commit = provenance()["git_commit"]
    check_writable(path.parent)
    for _, _, config in wanted:
        checked = resolve(config)
        check_places(checked)
        check_inputs(checked)
    with ray_cluster() as resources:
        for number, (name, parts, config) in enumerate(wanted, start=1):
            logging.info("%d of %d: %s, seed %d", number, len(wanted), name, config.seed)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            named = config.model_copy(
                update={"name": f"ablation-{config.recipe}-{name}-s{config.seed}-{stamp}"}
            )
            started = time.monotonic()
            run = prepare_run(resolve(named))
            outcome = launch(run, resources)
            trained = config.kind == "cosa"
            judged = "unfiltered" if trained else "cam_true_labels"
            best = max(outcome.reports.values(), key=lambda report: report.scores[judged].miou or 0.0)
            row = make_row(
                name,
                parts,
                best,
                seed=config.seed,
                recipe=config.recipe,
                dataset=config.data.label or Path(config.data.shards).name,
                commit=commit,
                seconds=time.monotonic() - started,
                segments=trained,
            )
            append_row(path, row)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Train what is missing, then print the table."""
    ablation = read_ablation(arguments.space)
    if not arguments.table:
        wanted = configurations(ablation, arguments, rest)
        logging.info("%d runs to train, rows in %s", len(wanted), arguments.rows)
        if wanted:
            train(wanted, arguments.rows)
    rows = read_rows(arguments.rows)
    if not rows:
        raise ConfigError(f"no rows in {arguments.rows}: train first")
    order = [combination.name for combination in ablation.combinations]
    rows.sort(key=lambda row: order.index(row.combination) if row.combination in order else len(order))
    print(as_markdown(rows, ablation.parts, arguments.context_class))


def main() -> int:
    """Return the exit code: 0 done, 1 a run failed, 2 it could not start."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--space", type=place, default=HERE / "ablation.yaml", help="file of combinations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per seed")
    parser.add_argument("--only", nargs="+", default=[], help="combinations to train (default: all)")
    parser.add_argument(
        "--rows", type=lasting_place, default="outputs/ablation.jsonl", help="file of the finished runs"
    )
    parser.add_argument(
        "--context-class", default="", help="coexisting class to report (generated data: train)"
    )
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    return run_job(parser, run, next_step="the same command continues")


if __name__ == "__main__":
    sys.exit(main())
