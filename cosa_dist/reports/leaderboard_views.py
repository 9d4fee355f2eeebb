"""The leaderboard for people and programs: terminal, Markdown, CSV, JSON; and runs out of MLflow."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from cosa_dist.reports.leaderboard import Row, RunRecord, Table
from cosa_dist.reports.seed_groups import experiment_digest
from cosa_dist.tracking.evaluation_text import crf_text, evaluation_text
from cosa_dist.tracking.store import StoreError, require_store, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.console import Console

COLUMNS: dict[str, Callable[[Row], str]] = {
    "rank": lambda row: "" if row.rank is None else str(row.rank),
    "run": lambda row: row.run,
    "recipe": lambda row: row.recipe,
    "network": lambda row: row.network,
    "mIoU": lambda row: "nan" if math.isnan(row.miou) else f"{row.miou:.1f}",
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
ENDED = ("FINISHED", "FAILED", "KILLED")


def _status(row: Row) -> str:
    """E.g. `finished`, `finished (control)`, `published 2024 (CLIP, not verified)`."""
    words = f"{row.status} {row.year}" if row.year else row.status
    return f"{words} ({row.note})" if row.note else words


def read_runs(uri: str, experiments: Sequence[str] = ()) -> list[RunRecord]:
    """Read the runs of some experiments (all by default) from an existing store.

    Raises:
        StoreError: if the store is missing or does not answer, or an experiment does not exist.
    """
    require_store(uri)
    from mlflow.exceptions import MlflowException

    from cosa_dist.tracking.mlflow_runs import connect

    try:
        client = connect(uri)
        names = _experiments(client, experiments)
        return [run for identity, name in names.items() for run in _runs(client, identity, name)]
    except MlflowException as error:
        first = error.message.splitlines()[0]
        raise StoreError(f"tracking store {without_password(uri)}: {first}") from error


def _experiments(client: MlflowClient, wanted: Sequence[str]) -> dict[str, str]:
    """Id -> name of the wanted experiments."""
    names: dict[str, str] = {}
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)
        names |= {found.experiment_id: found.name for found in page}
        token = page.token
        if not token:
            break
    missing = [name for name in wanted if name not in names.values()]
    if missing:
        known = ", ".join(sorted(names.values()))
        raise StoreError(f"no experiment named {', '.join(missing)}; there are: {known}")
    return {key: name for key, name in names.items() if not wanted or name in wanted}


def _runs(client: MlflowClient, experiment_id: str, experiment: str) -> list[RunRecord]:
    records: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            info = run.info
            # A run that was taken up again still has the end of its first part.
            timed = info.status in ENDED and info.end_time is not None and info.start_time is not None
            tags, params = dict(run.data.tags), dict(run.data.params)
            records.append(
                RunRecord(
                    run_id=info.run_id,
                    name=info.run_name or info.run_id[:8],
                    experiment=experiment,
                    status=info.status,
                    metrics=dict(run.data.metrics),
                    tags=tags,
                    digest=experiment_digest(params, tags.get("data_fingerprint_train", "")),
                    seconds=(info.end_time - info.start_time) / 1000 if timed else None,
                    evaluation=evaluation_text(params),
                    crf=crf_text(params),
                )
            )
        token = page.token
        if not token:
            return records


def duration(seconds: float | None) -> str:
    """Seconds as `1 h 05 min`, `3 min 20 s` or `12 s`; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print the tables in the terminal; columns that are empty everywhere are left out."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    # A pipe or a log file has no width of its own; a narrow guess would cut the cells.
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 260)
    for table in tables:
        names = used_columns(table)
        shown = RichTable(title=table.title, title_justify="left")
        for name in names:
            narrow = name in ("rank", "mIoU")
            shown.add_column(name, justify="right" if narrow else "left", overflow="fold")
        for row in table.rows:
            cells = [Text(COLUMNS[name](row)) for name in names]
            shown.add_row(*cells, style="dim" if row.published else "")
        console.print(shown)


def used_columns(table: Table) -> list[str]:
    """Names of the columns in which some row has something to say that the heading does not."""
    heading = f"{table.dataset} {table.split}".casefold()
    said = (
        {"data set"} if all(COLUMNS["data set"](row).casefold() == heading for row in table.rows) else set()
    )
    return [
        name for name, cell in COLUMNS.items() if name not in said and any(cell(row) for row in table.rows)
    ]


def to_markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, one heading each."""
    parts = []
    for table in tables:
        names = used_columns(table)
        lines = [f"### {table.title}", "", markdown_line(names), markdown_line(["---"] * len(names))]
        lines += [markdown_line([COLUMNS[name](row) for name in names]) for row in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """All rows as CSV with full precision, one header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for table in tables for row in table.rows)
    return text.getvalue()


def to_json(tables: Sequence[Table]) -> str:
    """All tables as JSON; a score that is not a number becomes null."""
    content = [
        {
            "title": table.title,
            "dataset": table.dataset,
            "split": table.split,
            "protocol": table.protocol,
            "evaluation": table.evaluation,
            "rows": [
                {
                    key: None if isinstance(value, float) and math.isnan(value) else value
                    for key, value in asdict(row).items()
                }
                for row in table.rows
            ],
        }
        for table in tables
    ]
    return json.dumps(content, indent=1) + "\n"


def markdown_line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
