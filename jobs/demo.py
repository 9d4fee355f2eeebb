"""The whole system in one go: `make demo`, or `python jobs/demo.py [--seeds 0 1 2] [--control]`.

Generates a small data set, trains CoSA on it with two Ray Train workers on the CPU, evaluates it and
prints the leaderboard; `--control` trains a classification-only network of the same length as well, whose
CAM is what CoSA has to beat. Everything lies below `outputs/`; a second call adds runs and uses the same
data.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from pathlib import Path

from cosa_dist.config.paths import lasting_place

IMAGES = {"train": 600, "val": 150}
CONTROL = {"kind": "control", "evaluation.cam_control": True}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument("--control", action="store_true", help="train the control as well")
    parser.add_argument("--data-only", action="store_true", help="only generate the data set")
    where = "folder of data, runs and MLflow store"
    parser.add_argument("--output", type=lasting_place, default="outputs", help=where)
    return parser.parse_args()


def generate(shards: Path) -> None:
    """Write the generated data set, unless an earlier call did."""
    from rich.console import Console

    from cosa_dist.data.ingest.ingest import ingest
    from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records

    if (shards / "dataset.json").is_file():
        return
    sources = {
        split: synthetic_records(split, count, seed=0, image_size=128) for split, count in IMAGES.items()
    }
    ingest(sources, synthetic_info(), shards, console=Console())


def run(arguments: argparse.Namespace) -> None:
    """Generate, train, compare."""
    started = time.monotonic()
    from cosa_dist.config.loading import load_config
    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run, resolve
    from cosa_dist.evaluation.report import as_text
    from cosa_dist.reports.leaderboard import leaderboard
    from cosa_dist.reports.leaderboard_views import print_tables
    from cosa_dist.reports.tracked_runs import read_runs
    from cosa_dist.tracking.provenance import usable_cpus

    output = arguments.output.resolve()
    generate(output / "demo" / "shards")
    if arguments.data_only:
        return
    place = {"output": str(output), "data.shards": str(output / "demo" / "shards")}
    outcome = None
    # The two workers share whatever cores there are.
    with ray_cluster(num_cpus=max(2, usable_cpus())) as resources:
        for seed in arguments.seeds:
            for extra in (CONTROL, {}) if arguments.control else ({},):
                config = load_config("demo", None, {**place, "seed": seed, **extra})
                kind = "classification-only control" if extra else "CoSA"
                logging.info("%s, seed %d: %d steps", kind, seed, config.training.steps)
                outcome = launch(prepare_run(resolve(config)), resources)
    if outcome is None:
        return
    print(as_text(list(outcome.reports.values()), per_class=False))
    runs = read_runs(outcome.tracking_uri)
    print_tables(leaderboard(runs, dataset="synthetic", with_published=False))
    print(f"pictures  {outcome.folder / 'pictures'}")
    print(f"MLflow    {outcome.tracking_uri}")
    print(f"          look at it: .venv/bin/mlflow ui --backend-store-uri {outcome.tracking_uri}")
    print(f"{time.monotonic() - started:.0f} s in all")


def main() -> int:
    """Return the exit code: 0 done, 1 a run failed, 2 it could not start."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            run(arguments)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except RuntimeError as error:
            print(f"demo failed: {error}", file=sys.stderr)
            return 1
        return 0
    return 130


if __name__ == "__main__":
    sys.exit(main())
