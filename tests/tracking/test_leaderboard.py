from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from cosa_dist.tracking.leaderboard import (
    CAM_CONTROL,
    RunRecord,
    Table,
    leaderboard,
    rows_of,
    without_result,
)
from cosa_dist.tracking.leaderboard_views import (
    duration,
    print_tables,
    read_runs,
    to_csv,
    to_json,
    to_markdown,
)
from cosa_dist.tracking.mlflow_client import connect
from cosa_dist.tracking.mlflow_runs import create_run, finish_run, reopen_run
from cosa_dist.tracking.store import StoreError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def record(name: str, dataset: str = "VOC", status: str = "FINISHED", **metrics: float) -> RunRecord:
    """A run; `online_unfiltered=70` stands for `final/online/miou_unfiltered`."""
    measures = {}
    for key, value in metrics.items():
        network, _, measure = key.partition("_")
        prefix = "" if measure.startswith("cam_control") else "miou_"
        measures[f"final/{network}/{prefix}{measure}"] = value
    tags = {"dataset": dataset, "split": "val", "recipe": "r", "backbone": "vit", "seed": "1"}
    tags |= {"steps": "100", "git_commit": COMMIT + "-dirty", "kind": "cosa"}
    return RunRecord(name, name, "cosa", status, measures | {"final/images_per_second": 12.5}, tags, 75.0)


def table(tables: list[Table], title: str) -> Table:
    (found,) = [item for item in tables if item.title == title]
    return found


def test_the_better_network_counts_and_runs_are_ranked_by_it():
    runs = [
        record("a", online_unfiltered=70, assignment_unfiltered=72),
        record("b", online_unfiltered=75, assignment_unfiltered=71),
        record("c", online_unfiltered=math.nan),
        record("d", online_unfiltered=math.nan, assignment_unfiltered=10),
    ]
    (ranking,) = leaderboard(runs, with_published=False)
    assert [(row.rank, row.run, row.network) for row in ranking.rows] == [
        (1, "b", "online"),
        (2, "a", "assignment"),
        (3, "d", "assignment"),
        (4, "c", "online"),
    ]
    assert ranking.rows[0].miou == pytest.approx(75.0)
    assert ranking.rows[0].commit == "0123456789-dirty"
    assert ranking.rows[0].images_per_second == 12.5


def test_time_is_that_of_the_training_where_it_is_known():
    run = record("a", online_unfiltered=70)
    assert rows_of(run)[0].seconds == 75.0
    timed = replace(run, metrics={**run.metrics, "final/training_seconds": 50.0})
    assert rows_of(timed)[0].seconds == 50.0


def test_protocols_and_data_sets_are_never_mixed():
    runs = [
        record("a", online_unfiltered=70, online_true_labels=76),
        record("b", "VOC-mini", online_unfiltered=80, online_predicted_labels=81),
    ]
    tables = leaderboard(runs, with_published=False)
    assert {item.title: [row.run for row in item.rows] for item in tables} == {
        "VOC val, unfiltered": ["a"],
        "VOC val, true_labels": ["a"],
        "VOC-mini val, unfiltered": ["b"],
        "VOC-mini val, predicted_labels": ["b"],
    }


def test_published_rows_have_no_rank_and_stand_only_in_their_data_set():
    runs = [
        record("ours", "voc", online_unfiltered=75, online_true_labels=76.3),
        record("mini", "VOC-mini", online_unfiltered=99),
        record("part", "VOC", online_unfiltered=50),
    ]
    tables = leaderboard(runs)
    assert [row.run for row in table(tables, "VOC-mini val, unfiltered").rows] == ["mini"]
    unfiltered = table(tables, "voc val, unfiltered").rows
    names = [row.run for row in unfiltered]
    assert names.index("WeCLIP") < names.index("ours") < names.index("SeCo")
    assert all((row.rank is None) == row.published for row in unfiltered)
    assert next(row.rank for row in unfiltered if row.run == "ours") == 1
    filtered = table(tables, "voc val, true_labels").rows
    assert [row.run for row in filtered] == ["CoSA + CRF", "ours", "CoSA"]
    assert {"CoSA + CRF", "CoSA"}.isdisjoint(names)
    assert [row.protocol for row in unfiltered if row.run == "CoSA-MS"] == ["unstated"]


def test_without_any_run_the_published_tables_remain():
    assert [item.title for item in leaderboard([])] == [
        "VOC val, unfiltered",
        "VOC val, true_labels",
        "COCO val, unfiltered",
        "COCO val, true_labels",
    ]
    assert leaderboard([], with_published=False) == []


def test_a_control_run_shows_nothing_but_its_cam():
    run = record("a", online_unfiltered=1, online_cam_control_predicted_labels=30)
    control = replace(run, tags={**run.tags, "kind": "control"})
    assert [row.protocol for row in rows_of(control)] == [CAM_CONTROL]


def test_the_cam_control_is_a_row_of_its_own():
    run = record("a", online_predicted_labels=50, online_cam_control_predicted_labels=30,
                 assignment_cam_control_predicted_labels=40)  # fmt: skip
    rows = {row.protocol: (row.network, row.miou) for row in rows_of(run)}
    assert rows == {"predicted_labels": ("online", 50.0), CAM_CONTROL: ("assignment", 40.0)}
    titles = [item.title for item in leaderboard([run], protocol="predicted_labels")]
    assert titles == ["VOC val, predicted_labels", f"VOC val, {CAM_CONTROL}"]


def test_filters():
    runs = [record("a", online_unfiltered=70), record("b", "VOC-mini", online_unfiltered=80)]
    assert [t.title for t in leaderboard(runs, dataset="voc-mini")] == ["VOC-mini val, unfiltered"]
    assert {t.protocol for t in leaderboard(runs, protocol="true_labels")} == {"true_labels"}


def test_runs_without_final_metrics_are_listed_apart():
    runs = [record("a", online_unfiltered=70), record("b", status="RUNNING")]
    assert [run.run_id for run in without_result(runs)] == ["b"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (12.4, "12 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_views_show_the_same_rows():
    runs = [record("our | [b]run", online_unfiltered=75, assignment_unfiltered=math.nan)]
    tables = leaderboard(runs, dataset="VOC", protocol="unfiltered")
    markdown = to_markdown(tables)
    assert "| 1 | our \\| [b]run | r | online | 75.0 | unfiltered | VOC val |" in markdown
    assert markdown.count("published") == 8
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(rows) == 9
    (ours,) = [row for row in rows if row["status"] == "finished"]
    assert (ours["rank"], float(ours["miou"]), ours["seed"]) == ("1", 75.0, "1")
    (content,) = json.loads(to_json(tables))
    assert [row["run"] for row in content["rows"]] == [row["run"] for row in rows]
    text = io.StringIO()
    print_tables(tables, Console(file=text))
    assert "our | [b]run" in text.getvalue()
    assert "0123456789-dirty" in text.getvalue()
    assert "1 min 15 s" in text.getvalue()


def test_a_score_that_is_no_number_is_null_in_json():
    content = json.loads(to_json(leaderboard([record("a", online_unfiltered=math.nan)])))
    assert [r["miou"] for t in content for r in t["rows"] if r["run"] == "a"] == [None]


def test_runs_come_out_of_a_real_store(store):
    for name, score in (("low", 30.0), ("high", 40.0)):
        run_id = create_run(store, "board", name, tags={"dataset": "VOC-mini", "split": "val"})
        client = connect(store)
        client.log_metric(run_id, "final/online/miou_unfiltered", 10.0, step=1)
        client.log_metric(run_id, "final/online/miou_unfiltered", score, step=2)
        client.set_terminated(run_id, "FINISHED" if name == "high" else "FAILED")
    create_run(store, "other", "elsewhere")
    runs = read_runs(store, ["board"])
    assert {(run.name, run.status, run.experiment) for run in runs} == {
        ("low", "FAILED", "board"),
        ("high", "FINISHED", "board"),
    }
    (ranking,) = leaderboard(runs, with_published=False)
    assert [(row.run, row.miou, row.status) for row in ranking.rows] == [
        ("high", 40.0, "finished"),
        ("low", 30.0, "failed"),
    ]
    assert "elsewhere" in {run.name for run in read_runs(store)}


def test_an_unknown_experiment_is_answered_with_the_known_ones(store):
    create_run(store, "board", "x")
    with pytest.raises(StoreError, match=r"no experiment named typo; there are:.*board"):
        read_runs(store, ["board", "typo"])


def test_a_run_that_goes_on_has_no_time_yet(store):
    run_id = create_run(store, "reopened", "goes-on")
    finish_run(store, run_id, "KILLED")
    reopen_run(store, run_id)
    (found,) = read_runs(store, ["reopened"])
    assert (found.status, found.seconds) == ("RUNNING", None)
    finish_run(store, run_id, "FINISHED")
    (found,) = read_runs(store, ["reopened"])
    assert found.seconds is not None
