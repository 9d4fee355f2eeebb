"""The leaderboard as one self-contained page: tables, learning curves, IoU per class, pictures side by side.

The tables hold all runs and the published numbers, runs first. Curves, classes and pictures
are embedded for the best runs of the tables only, so that the page stays of a size that a browser opens at
once; plots are drawn by plotly, whose code is part of the page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from plotly.offline import get_plotlyjs

from cosa_dist.reports.embedded import data_uri
from cosa_dist.reports.leaderboard import Row, Table
from cosa_dist.reports.leaderboard_views import COLUMNS, used_columns
from cosa_dist.reports.page import render_page
from cosa_dist.reports.run_details import RunDetails, read_details
from cosa_dist.reports.seed_group_views import COLUMNS as GROUP_COLUMNS
from cosa_dist.reports.seed_groups import group_seeds

MOST_RUNS = 24
PICTURE_SIDE = 1000
CHOSEN_AT_FIRST = 3
NUMBERS: dict[str, Callable[[Row], float | None]] = {
    "rank": lambda row: row.rank,
    "mIoU": lambda row: row.miou,
    "steps": lambda row: _number(row.steps),
    "seed": lambda row: _number(row.seed),
    "images/s": lambda row: row.images_per_second,
    "time": lambda row: row.seconds,
}
"""Columns that are sorted by value, not by text."""


def leaderboard_page(uri: str, tables: Sequence[Table], pictures: int = 6) -> str:
    """Make the page.

    Args:
        uri: tracking store of the runs; not read if the tables hold published numbers only.
        tables: what `leaderboard` gave.
        pictures: sample pictures of each run.

    Returns:
        HTML that needs no other file and no network.

    Raises:
        StoreError: the store does not answer.
    """
    runs = shown_runs(tables, MOST_RUNS)
    details = [read_details(uri, row.run_id, pictures) for row in runs]
    data = [_run_data(row, found) for row, found in zip(runs, details, strict=True)]
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
    places = max((len(table.rows) for table in tables), default=0)
    rows: dict[str, Row] = {}
    for place in range(places):
        for table in tables:
            own = [row for row in table.rows if not row.published]
            if place < len(own):
                rows.setdefault(own[place].run_id, own[place])
    return list(rows.values())[:most]


def _table_data(table: Table, detailed: set[str]) -> dict[str, Any]:
    """One table as the template reads it."""
    names = used_columns(table)
    groups = group_seeds(table)
    return {
        "title": table.title,
        "dataset": table.dataset,
        "protocol": table.protocol,
        "columns": names,
        "rows": [
            {
                "published": row.published,
                "id": row.run_id if row.run_id in detailed else "",
                "source": row.source if row.published else "",
                "cells": [{"text": COLUMNS[name](row), "value": _sort_value(name, row)} for name in names],
            }
            for row in table.rows
        ],
        "group_columns": list(GROUP_COLUMNS),
        "groups": [[cell(group) for cell in GROUP_COLUMNS.values()] for group in groups],
    }


def _sort_value(name: str, row: Row) -> str:
    """What a column is sorted by: a number in full precision where there is one."""
    value = NUMBERS[name](row) if name in NUMBERS else None
    return "" if value is None or math.isnan(value) else repr(float(value))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _run_data(row: Row, details: RunDetails) -> dict[str, Any]:
    """One run as the page's script reads it; numbers that are not finite become null."""
    networks = details.iou
    chosen = row.network if row.network in networks else next(iter(networks), "")
    return {
        "id": row.run_id,
        "name": row.run,
        "label": f"{row.run} ({row.dataset})",
        "curves": {
            key: {
                "step": [step for step, _ in points],
                "value": [value if math.isfinite(value) else None for _, value in points],
            }
            for key, points in sorted(details.curves.items())
        },
        "network": chosen,
        "iou": dict(networks[chosen]) if chosen else {},
        "pictures": {n: uri for n, content in details.pictures.items() if (uri := _picture(content))},
    }


def _picture(content: bytes) -> str:
    """The picture as a data URI; empty for a damaged file."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return data_uri(picture.convert("RGB"), PICTURE_SIDE)
    except OSError:
        return ""
