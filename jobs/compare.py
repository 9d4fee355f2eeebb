"""Compare two runs on the same images: `python jobs/compare.py RUN RUN`, or `A1 A2 A3 --with B1 B2 B3`.

Prints both scores and their difference, each with its 95 % interval over the images, and the same per class.
Several runs a side (seeds) give mean and standard deviation. Everything is read from the run folders.
"""

from __future__ import annotations

import argparse
import sys

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.paths import lasting_place, place


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument(
        "runs", type=place, nargs="+", metavar="RUN", help="run folders: two, or the first side"
    )
    made.add_argument("--with", type=place, nargs="+", metavar="RUN", dest="second", help="the second side")
    made.add_argument(
        "--protocol", default="unfiltered", help="protocol, or a CAM's measurement (default: unfiltered)"
    )
    made.add_argument("--network", default="", help="online, assignment, average (default: the better one)")
    made.add_argument(
        "--split",
        default="",
        help="what jobs/evaluate.py left of this split (default: the run's own evaluation)",
    )
    made.add_argument("--json", type=lasting_place, metavar="FILE", help="also write everything as JSON")
    return made


def run(asked: argparse.Namespace, rest: list[str]) -> None:
    """Compare, print, write."""
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; see --help")
    first, second = (asked.runs, asked.second) if asked.second else (asked.runs[:1], asked.runs[1:])
    if not asked.second and len(asked.runs) != 2:
        raise ConfigError(f"{len(asked.runs)} runs: give two, or two sides as A1 A2 A3 --with B1 B2 B3")
    for side in (first, second):
        if len({each.resolve() for each in side}) < len(side):
            raise ConfigError("a side has the same run twice: give each once")

    from cosa_dist.atomic import atomic_write
    from cosa_dist.reports.comparison import compare, comparison_cells, comparison_json, reading
    from cosa_dist.reports.leaderboard_views import print_cells

    found = compare(first, second, asked.protocol, asked.network, asked.split)
    for cells in comparison_cells(found):
        print_cells(cells)
    print(reading(found))
    if asked.json:
        atomic_write(asked.json, comparison_json(found))
        print(f"written {asked.json}")


def main() -> int:
    """Return the exit code: 0 done, 2 bad input."""
    return run_job(parser(), run, what="comparison", next_step="the same command starts again")


if __name__ == "__main__":
    sys.exit(main())
