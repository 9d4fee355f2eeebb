"""The leaderboard as one self-contained page: tables, learning curves, IoU per class, pictures side by side.

The tables hold all runs and the published numbers, runs first. Curves, classes and pictures are embedded for
the best runs of the tables only, so that the page stays of a size that a browser opens at once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from PIL import Image
from plotly.offline import get_plotlyjs

from cosa_dist.reports.leaderboard import Row, Table
from cosa_dist.reports.leaderboard_views import group_cells, table_cells
from cosa_dist.reports.page import curve_data, data_uri, render_page
from cosa_dist.reports.tracked_runs import RunDetails, read_details

MOST_RUNS = 24
PICTURE_SIDE = 1000
CHOSEN_AT_FIRST = 3
NUMBERS: dict[str, Callable[[Row], float | str | None]] = {
    "rank": lambda row: row.rank,
    "mIoU": lambda row: row.miou,
    "steps": lambda row: row.steps,
    "seed": lambda row: row.seed,
    "images/s": lambda row: row.images_per_second,
    "time": lambda row: row.seconds,
}
"""columns that are sorted by value, not by text"""


def leaderboard_page(uri: str, tables: Sequence[Table], pictures: int = 6) -> str:
    """Make the page of what `leaderboard` gave, as HTML that needs no other file and no network.

    `uri` is the runs' tracking store, which is not read if the tables hold published numbers only; `pictures`
    the number of sample pictures of each run. Raises StoreError if the store does not answer.
    """
    runs = shown_runs(tables, MOST_RUNS)
    data = [_run_data(row, read_details(uri, row.run_id, pictures)) for row in runs]
    return render_page(
        "leaderboard.html.j2",
        title="CoSA leaderboard",
        tables=[_table_data(table, {row.run_id for row in runs}) for table in tables],
        runs=data,
        chosen=[run["id"] for run in data[:CHOSEN_AT_FIRST]],
        plotly=get_plotlyjs() if data else "",
    )


def shown_runs(tables: Sequence[Table], most: int) -> list[Row]:
    """The runs whose details are embedded: the best of every table in turn, each once."""
    rows: dict[str, Row] = {}
    for place in zip_longest(*(table.runs for table in tables)):
        for row in filter(None, place):
            rows.setdefault(row.run_id, row)
    return list(rows.values())[:most]


def _table_data(table: Table, detailed: set[str]) -> dict[str, Any]:
    """One table as the template reads it."""
    cells = table_cells(table)
    return {
        "table": table,
        "columns": cells.header,
        "rows": [
            {
                "published": row.published,
                "id": row.run_id if row.run_id in detailed else "",
                "source": row.source,
                "cells": [
                    {"text": text, "value": _sort_value(name, row)}
                    for name, text in zip(cells.header, line, strict=True)
                ],
            }
            for row, line in zip(table.rows, cells.rows, strict=True)
        ],
        "groups": group_cells(table),
    }


def _sort_value(name: str, row: Row) -> str:
    """What a column is sorted by: a number in full precision where there is one."""
    try:
        number = float(NUMBERS[name](row))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return ""
    return "" if math.isnan(number) else repr(number)


def _run_data(row: Row, details: RunDetails) -> dict[str, Any]:
    """One run as the page's script reads it."""
    network = row.network if row.network in details.iou else next(iter(details.iou), "")
    return {
        "id": row.run_id,
        "name": row.run,
        "label": f"{row.run} ({row.dataset})",
        "curves": {key: curve_data(points) for key, points in sorted(details.curves.items())},
        "network": network,
        "iou": dict(details.iou[network]) if network else {},
        "pictures": {name: uri for name, content in details.pictures.items() if (uri := _picture(content))},
    }


def _picture(content: bytes) -> str:
    """The picture as a data URI; empty for a damaged file."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return data_uri(picture, PICTURE_SIDE)
    except OSError:
        return ""
