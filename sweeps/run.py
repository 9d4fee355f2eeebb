"""Sweep over a recipe: `python sweeps/run.py --space loss_weights --recipe voc_mini --trials 8`.

`--space` names a file of this folder (loss_weights, threshold_search) or a path. Each trial is a whole
Ray Train run; trials are child runs of the sweep in MLflow. Ends with the table of trials and the best
configuration as a YAML that `jobs/train.py --config` takes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from cosa_dist.config.command_line import make_parser
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config
from cosa_dist.distributed.paths import with_absolute_paths
from cosa_dist.distributed.search_space import check_space, read_space, tune_space

HERE = Path(__file__).parent


def space_path(name: str) -> Path:
    """File of a named space, or the path itself."""
    return Path(name) if name.endswith((".yaml", ".yml")) else HERE / f"{name}.yaml"


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Check the space against the configuration, run the sweep, print its outcome."""
    config = load_config(arguments.recipe, arguments.config, rest)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = config.name or f"sweep-{Path(arguments.space).stem}-{config.recipe}-{stamp}"
    config = with_absolute_paths(config.model_copy(update={"name": name}))
    space = read_space(space_path(arguments.space))
    check_space(space, config, str(space_path(arguments.space)))

    from rich.console import Console
    from rich.table import Table

    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.sweep import METRIC, run_sweep

    # A private cluster gets one more logical CPU, for the trial's driver, which only waits.
    with ray_cluster(num_cpus=(os.cpu_count() or 1) + 1) as resources:
        if "RAY_ADDRESS" not in os.environ and not config.distributed.cpus_per_worker:
            workers = config.distributed.workers or 1
            share = max(1, (os.cpu_count() or 1) // workers)
            distributed = config.distributed.model_copy(update={"cpus_per_worker": share})
            config = config.model_copy(update={"distributed": distributed})
        result = run_sweep(config, tune_space(space), arguments.trials, arguments.scheduler, resources)
    table = Table(title=f"{name}: unfiltered mIoU")
    for column in result.rows[0]:
        table.add_column(column)
    for row in result.rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    print(f"best {METRIC} {result.rows[0][METRIC]:.2f}: {result.best_config}")


def main() -> int:
    """Return the exit code: 0 done, 1 failed, 2 it could not start."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--space", required=True, help="loss_weights, threshold_search or a file")
    parser.add_argument("--trials", type=int, default=8, help="number of samples")
    parser.add_argument("--scheduler", choices=("asha", "none"), default="asha")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments, rest = parser.parse_known_args()
    try:
        run(arguments, rest)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"sweep failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
