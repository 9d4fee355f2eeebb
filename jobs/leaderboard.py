"""Rank the recorded runs, by evaluated images, protocol and settings, beside the published results.

python jobs/leaderboard.py [--experiment NAME ...] [--dataset VOC] [--protocol unfiltered]
python jobs/leaderboard.py --seeds              # runs that differ in their seed only as one line
python jobs/leaderboard.py --html board.html    # one page with curves, classes and pictures
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cosa_dist.config.paths import lasting_place
from cosa_dist.reports.leaderboard import PROTOCOLS, PUBLISHED_ONLY

if TYPE_CHECKING:
    from cosa_dist.reports.leaderboard import Table


def _count(text: str) -> int:
    """A number of pictures: 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pictures")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tracking-uri", default="", help="MLflow store (default: SQLite in outputs/mlflow.db)"
    )
    parser.add_argument(
        "--experiment", action="extend", nargs="+", default=[], help="experiments (default: all)"
    )
    parser.add_argument("--dataset", default="", help="only this data set, e.g. VOC or VOC-mini")
    parser.add_argument(
        "--protocol",
        default="",
        choices=(*PROTOCOLS, *PUBLISHED_ONLY),
        help="only this protocol (server, unstated: published results only)",
    )
    parser.add_argument("--recipe", default="", help="only runs of this recipe")
    parser.add_argument("--backbone", default="", help="only backbones with this in their name")
    parser.add_argument("--seeds", action="store_true", help="group runs that differ in their seed only")
    parser.add_argument("--no-published", action="store_true", help="leave published results out")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--csv", type=lasting_place, metavar="FILE", help="also write the rows as CSV")
    parser.add_argument("--json", type=lasting_place, metavar="FILE", help="also write the tables as JSON")
    parser.add_argument("--html", type=lasting_place, metavar="FILE", help="also write the page")
    parser.add_argument(
        "--pictures", type=_count, default=6, metavar="N", help="sample pictures of each run on the page"
    )
    return parser.parse_args(arguments)


def write_files(options: argparse.Namespace, uri: str, tables: list[Table]) -> None:
    """Write the CSV, JSON and HTML files that are asked for."""
    from cosa_dist.reports.leaderboard_views import to_csv, to_json

    for path, text in ((options.csv, to_csv), (options.json, to_json)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(tables))
            print(f"written: {path}", file=sys.stderr)
    if options.html is not None:
        from cosa_dist.atomic import atomic_write
        from cosa_dist.reports.leaderboard_page import leaderboard_page

        atomic_write(options.html, leaderboard_page(uri, tables, options.pictures))
        print(f"written: {options.html}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Print the leaderboard; 1 if a named store cannot be read or a file cannot be written."""
    options = parse_arguments(arguments)
    from cosa_dist.reports.leaderboard import RunRecord, leaderboard, without_result
    from cosa_dist.reports.leaderboard_views import print_tables, to_markdown
    from cosa_dist.reports.tracked_runs import read_runs
    from cosa_dist.tracking.store import StoreError, resolve_uri

    runs: list[RunRecord] = []
    uri = ""
    try:
        uri = resolve_uri(options.tracking_uri, Path("outputs"))
        runs = read_runs(uri, options.experiment)
    except StoreError as error:
        print(error, file=sys.stderr)
        if options.tracking_uri or options.experiment:
            return 1
    tables = leaderboard(
        runs,
        dataset=options.dataset,
        protocol=options.protocol,
        recipe=options.recipe,
        backbone=options.backbone,
        with_published=not options.no_published,
    )
    if options.markdown:
        print(to_markdown(tables, seeds=options.seeds), end="")
    else:
        print_tables(tables, seeds=options.seeds)
    try:
        write_files(options, uri, tables)
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    waiting = Counter(run.status.lower() for run in without_result(runs))
    if waiting:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(waiting.items()))
        print(f"runs without a final evaluation: {counts}", file=sys.stderr)
    if not any(table.runs for table in tables):
        print("no ranked run here yet: train one with jobs/train.py", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
