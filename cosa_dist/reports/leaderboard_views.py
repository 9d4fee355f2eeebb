"""The leaderboard for people and programs: terminal, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

from cosa_dist.evaluation.intervals import LEVEL_TEXT, interval_text
from cosa_dist.reports.leaderboard import Row, Table

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS: dict[str, Callable[[Row], str]] = {
    "rank": lambda row: "" if row.rank is None else str(row.rank),
    "run": lambda row: row.run,
    "recipe": lambda row: row.recipe,
    "network": lambda row: row.network,
    "mIoU": lambda row: f"{row.miou:.1f}",
    LEVEL_TEXT: lambda row: _interval([row]),
    "data set": lambda row: f"{row.dataset} {row.split}",
    "backbone": lambda row: row.backbone,
    "steps": lambda row: row.steps,
    "seed": lambda row: row.seed,
    "images/s": lambda row: "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
    "time": lambda row: duration(row.seconds),
    "hardware": lambda row: row.hardware,
    "commit": lambda row: row.commit,
    "status": lambda row: _status(row),
    "measured at": lambda row: row.evaluation if row.published else "",
}
"""cell by column; what the heading says of all rows is in none"""
GROUP_COLUMNS: dict[str, Callable[[Sequence[Row]], str]] = {
    "recipe": lambda rows: rows[0].recipe,
    "backbone": lambda rows: rows[0].backbone,
    "steps": lambda rows: rows[0].steps,
    "mIoU (mean)": lambda rows: f"{mean(row.miou for row in rows):.1f}",
    LEVEL_TEXT: lambda rows: _interval(rows),
    "SD": lambda rows: f"{stdev(row.miou for row in rows):.1f}" if len(rows) > 1 else "",
    "range": lambda rows: f"{min(row.miou for row in rows):.1f} to {max(row.miou for row in rows):.1f}",
    "runs": lambda rows: str(len(rows)),
    "seeds": lambda rows: " ".join(row.seed for row in rows if row.seed),
    "time (mean)": lambda rows: _mean_duration(rows),
    "commits": lambda rows: ", ".join(sorted({row.commit for row in rows if row.commit})),
    "options": lambda rows: rows[0].digest,
}
"""cell by column of the runs of one experiment, which differ in their seed only"""


class Cells(NamedTuple):
    """A table as text, whatever it is shown as."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    dim: Sequence[int] = ()
    """rows in the background"""


def table_cells(table: Table) -> Cells:
    """The rows of a table, without columns that are empty or only repeat the heading."""
    heading = f"{table.dataset} {table.split}".casefold()
    repeated = all(COLUMNS["data set"](row).casefold() == heading for row in table.rows)
    names = [
        name
        for name, cell in COLUMNS.items()
        if any(map(cell, table.rows)) and not (name == "data set" and repeated)
    ]
    cells = [[COLUMNS[name](row) for name in names] for row in table.rows]
    return Cells(table.title, names, cells, [place for place, row in enumerate(table.rows) if row.published])


def group_cells(table: Table) -> Cells:
    """The runs of a table with their seeds grouped."""
    rows = [[cell(group) for cell in GROUP_COLUMNS.values()] for group in table.seed_groups]
    return Cells(table.title, list(GROUP_COLUMNS), rows)


def _cells(tables: Iterable[Table], seeds: bool) -> list[Cells]:
    made = map(group_cells if seeds else table_cells, tables)
    return [cells for cells in made if cells.rows]


def _status(row: Row) -> str:
    """E.g. `finished`, `finished (control)`, `published 2024 (CLIP, not verified)`."""
    words = f"{row.status} {row.year}" if row.year else row.status
    return f"{words} ({row.note})" if row.note else words


def _interval(rows: Sequence[Row]) -> str:
    """The interval of a run, or the mean of several runs' ends; empty if one of them has none."""
    ends = [(row.low, row.high) for row in rows if row.low is not None and row.high is not None]
    whole = len(ends) == len(rows)
    return interval_text((mean(low for low, _ in ends), mean(high for _, high in ends))) if whole else ""


def _mean_duration(rows: Sequence[Row]) -> str:
    known = [row.seconds for row in rows if row.seconds is not None]
    return duration(mean(known)) if known else ""


def duration(seconds: float | None) -> str:
    """Seconds as `1 h 05 min`, `3 min 20 s` or `12 s`; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def print_tables(tables: Sequence[Table], console: Console | None = None, *, seeds: bool = False) -> None:
    """Print the tables in the terminal, or the runs with their seeds grouped."""
    for cells in _cells(tables, seeds):
        print_cells(cells, console)


def print_cells(cells: Cells, console: Console | None = None) -> None:
    """Print one table in the terminal; into a pipe or file without cutting the cells."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 260)
    shown = RichTable(title=cells.title, title_justify="left")
    for name in cells.header:
        shown.add_column(name, justify="right" if name in ("rank", "mIoU") else "left", overflow="fold")
    for place, row in enumerate(cells.rows):
        shown.add_row(*map(Text, row), style="dim" if place in cells.dim else "")
    console.print(shown)


def to_markdown(tables: Sequence[Table], *, seeds: bool = False) -> str:
    """The tables, or the runs with their seeds grouped, as Markdown with one heading each."""
    parts = [f"### {c.title}\n\n{markdown_table(c.header, c.rows)}" for c in _cells(tables, seeds)]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_csv(tables: Sequence[Table]) -> str:
    """All rows as CSV with full precision, one header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for table in tables for row in table.rows)
    return text.getvalue()


def to_json(tables: Sequence[Table]) -> str:
    """All tables as JSON; a score that is not a number becomes null."""
    named = ("title", "dataset", "split", "protocol", "evaluation")
    content = [
        {name: getattr(table, name) for name in named}
        | {
            "rows": [
                {key: None if value != value else value for key, value in asdict(row).items()}
                for row in table.rows
            ]
        }
        for table in tables
    ]
    return json.dumps(content, indent=1) + "\n"
