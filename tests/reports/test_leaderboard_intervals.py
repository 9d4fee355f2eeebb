"""The leaderboard's intervals over images, and the spread over seeds."""

from __future__ import annotations

import csv
import io
import json

from cosa_dist.reports.leaderboard import leaderboard
from cosa_dist.reports.leaderboard_views import group_cells, table_cells, to_csv, to_json, to_markdown
from tests.reports.test_leaderboard import record


def test_intervals_stand_beside_the_scores_where_there_are_any():
    ends = {"assignment_unfiltered_low": 72.26, "assignment_unfiltered_high": 77.84}
    best = record("best", online_unfiltered=70, assignment_unfiltered=75, online_unfiltered_low=1.0, **ends)
    (table,) = leaderboard([best, record("older", online_unfiltered=71)], with_published=False)
    cells = table_cells(table)
    place = cells.header.index("95 %")
    assert [row[place] for row in cells.rows] == ["72.3 to 77.8", ""]
    assert "| 75.0 | 72.3 to 77.8 |" in to_markdown([table])
    rows = list(csv.DictReader(io.StringIO(to_csv([table]))))
    assert [(row["low"], row["high"]) for row in rows] == [("72.26", "77.84"), ("", "")]
    assert [row["low"] for row in json.loads(to_json([table]))[0]["rows"]] == [72.26, None]
    (older,) = leaderboard([record("older", online_unfiltered=71)], with_published=False)
    assert "95 %" not in table_cells(older).header


def test_seeds_have_mean_spread_and_the_mean_of_their_intervals():
    def seeds(*scores: tuple[float, float, float]) -> dict[str, str]:
        runs = [
            record(
                str(place),
                online_unfiltered=score,
                online_unfiltered_low=low,
                online_unfiltered_high=high,
            )
            for place, (score, low, high) in enumerate(scores)
        ]
        (table,) = leaderboard(runs, with_published=False)
        cells = group_cells(table)
        return dict(zip(cells.header, cells.rows[0], strict=True))

    three = seeds((60, 57, 62), (62, 60, 65), (64, 60, 68))
    assert (three["mIoU (mean)"], three["SD"], three["runs"]) == ("62.0", "2.0", "3")
    assert three["95 %"] == "59.0 to 65.0"
    assert seeds((60, 57, 62))["SD"] == ""
