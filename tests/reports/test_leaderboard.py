from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from cosa_dist.reports.leaderboard import (
    AS_MEASURED,
    CAM_CONTROL,
    RunRecord,
    leaderboard,
    rows_of,
    without_result,
)
from cosa_dist.reports.leaderboard_views import (
    duration,
    print_tables,
    table_cells,
    to_csv,
    to_json,
    to_markdown,
)
from cosa_dist.reports.tracked_runs import read_runs
from cosa_dist.tracking.mlflow_runs import connect, create_run, finish_run, reopen_run
from cosa_dist.tracking.store import StoreError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COSA = "448 square, 5 scales + mirror"
VOC_VAL = {"image_set": "aaaaaaaabbbb", "benchmark": "VOC val", "evaluated_images": "1449", "classes": "20"}


def of(image_set: str, images: int = 120, classes: int = 3, benchmark: str = "") -> dict[str, str]:
    """Tags that say what was evaluated."""
    counts = {"evaluated_images": str(images), "classes": str(classes)}
    return {"image_set": image_set, "benchmark": benchmark, **counts}


def record(
    name: str,
    dataset: str = "VOC",
    status: str = "FINISHED",
    *,
    evaluated: dict[str, str] | None = None,
    evaluation: str = COSA,
    crf: str = "released CRF",
    **metrics: float,
) -> RunRecord:
    """A run; `online_unfiltered=70` stands for `final/online/miou_unfiltered`.

    `evaluated` are its tags of the evaluated images, by default one set for each data set.
    """
    measures = {}
    for key, value in metrics.items():
        network, _, measure = key.partition("_")
        prefix = "" if measure.startswith("cam_control") else "miou_"
        measures[f"final/{network}/{prefix}{measure}"] = value
    tags = {"dataset": dataset, "split": "val", "recipe": "r", "backbone": "vit", "seed": "1"}
    tags |= {"steps": "100", "git_commit": COMMIT + "-dirty", "kind": "cosa"}
    tags |= of(f"{dataset}-set") if evaluated is None else evaluated
    measures["final/images_per_second"] = 12.5
    return RunRecord(
        name, name, "cosa", status, measures, tags, 75.0, evaluation=evaluation, crf=crf
    )  # fmt: skip


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
    assert {(item.dataset, item.protocol): [row.run for row in item.rows] for item in tables} == {
        ("VOC", "unfiltered"): ["a"],
        ("VOC", "true_labels"): ["a"],
        ("VOC-mini", "unfiltered"): ["b"],
        ("VOC-mini", "predicted_labels"): ["b"],
    }
    assert tables[-1].title == f"VOC-mini val (120 images), predicted_labels, {COSA}"


def titles_and_runs(runs: list[RunRecord], **options) -> dict[str, list[str]]:
    tables = leaderboard(runs, with_published=False, **options)
    return {item.title: [row.run for row in item.rows] for item in tables}


def test_two_data_sets_of_one_name_are_two_rankings_told_apart_in_the_title():
    runs = [
        record("leaf", "photos", evaluated=of("1111aaaa9999", 120, 3), online_unfiltered=70),
        record("rust", "photos", evaluated=of("2222bbbb9999", 1250, 2), online_unfiltered=80),
        record("rust2", "photos", evaluated=of("2222bbbb9999", 1250, 2), online_unfiltered=60),
        record("other", "scans", evaluated=of("3333cccc9999", 7, 2), online_unfiltered=50),
    ]
    assert titles_and_runs(runs) == {
        f"photos val (2 classes, 1,250 images, set 2222bbbb), unfiltered, {COSA}": ["rust", "rust2"],
        f"photos val (3 classes, 120 images, set 1111aaaa), unfiltered, {COSA}": ["leaf"],
        f"scans val (7 images), unfiltered, {COSA}": ["other"],
    }


def test_the_same_images_under_two_names_are_one_ranking():
    runs = [
        record("a", "photos", evaluated=of("1111aaaa9999"), online_unfiltered=70),
        record("b", "colleague", evaluated=of("1111aaaa9999"), online_unfiltered=75),
    ]
    title = f"colleague / photos val (120 images), unfiltered, {COSA}"
    assert titles_and_runs(runs) == {title: ["b", "a"]}
    assert list(titles_and_runs(runs, dataset="photos")) == [title]
    (table_of_both,) = leaderboard(runs, with_published=False)
    assert "data set" in table_cells(table_of_both).header
    third = record("c", "photos", evaluated=of("2222bbbb9999", 50), online_unfiltered=75)
    assert list(titles_and_runs([*runs, third]))[1].startswith(
        "photos val (3 classes, 50 images, set 2222bbbb)"
    )
    (single,) = leaderboard(runs[:1], with_published=False)
    assert "data set" not in table_cells(single).header


def test_other_sizes_scales_or_mirroring_are_other_rankings_and_a_crf_counts_where_it_is_used():
    scores = {"online_unfiltered": 70, "online_unfiltered_crf": 71}
    runs = [
        record("a", "d", **scores),
        record("b", "d", crf="CRF 10 iterations 4/3 83/5/3", **scores),
        record("c", "d", evaluation="192 square, 5 scales + mirror", online_unfiltered=90),
        record("d", "d", evaluation="448 square, 1 scale, no mirror", online_unfiltered=90),
    ]
    assert titles_and_runs(runs) == {
        "d val (120 images), unfiltered, 192 square, 5 scales + mirror": ["c"],
        "d val (120 images), unfiltered, 448 square, 1 scale, no mirror": ["d"],
        f"d val (120 images), unfiltered, {COSA}": ["a", "b"],
        f"d val (120 images), unfiltered_crf, {COSA}, CRF 10 iterations 4/3 83/5/3": ["b"],
        f"d val (120 images), unfiltered_crf, {COSA}, released CRF": ["a"],
    }


def test_a_part_of_the_images_is_another_ranking():
    whole = record("whole", evaluated=VOC_VAL, online_unfiltered=70)
    part = record("part", evaluated=of("cccc", 50, 20), online_unfiltered=80)
    tables = leaderboard([whole, part])
    of_part = [item for item in tables if "part" in {row.run for row in item.rows}]
    assert [item.title for item in of_part] == [
        f"VOC val (20 classes, 50 images, set cccc), unfiltered, {COSA}"
    ]
    assert [row.run for row in of_part[0].rows] == ["part"]


def test_runs_that_did_not_record_their_images_go_by_name_in_a_marked_table():
    old = {"data_fingerprint_val": "sha256:0123456789"}
    runs = [
        record("new", evaluated=VOC_VAL, online_unfiltered=70),
        record("old", evaluated={}, online_unfiltered=75),
        record("older", evaluated={}, online_unfiltered=74),
        record("print", evaluated=old, online_unfiltered=73),
    ]
    tables = {item.title: [row.run for row in item.rows] for item in leaderboard(runs) if item.runs}
    assert tables[f"VOC val (images not recorded), unfiltered, {COSA}"] == ["old", "older"]
    assert tables[f"VOC val (images not recorded, set 01234567), unfiltered, {COSA}"] == ["print"]
    assert [names for names in tables.values() if "new" in names and "old" in names] == []
    assert tables[f"VOC val (1,449 images), unfiltered, {COSA}"] == ["new"]


def test_published_rows_stand_beside_runs_on_their_images_whatever_these_are_called():
    runs = [
        record("ours", "pictures", evaluated=VOC_VAL, online_unfiltered=74, online_true_labels=76.3,
               online_unfiltered_crf=75, online_true_labels_crf=76.3),
        record("mini", "VOC-mini", online_unfiltered=99),
        record("own devkit", "VOC", evaluated=of("dddd", 1449, 3), online_unfiltered=50),
    ]  # fmt: skip
    tables = leaderboard(runs)
    rows = {item.protocol: item.rows for item in tables if item.dataset == "VOC" and item.rows[0].benchmark
            and item.runs}  # fmt: skip
    unfiltered = [row.run for row in rows["unfiltered"]]
    # WeCLIP's, the log's and the others' evaluations are other ones, and stand in tables of their own.
    assert unfiltered == ["ours"]
    assert [row.run for row in rows["true_labels"]] == ["ours", "CoSA"]
    assert [row.run for row in rows["true_labels_crf"]] == ["CoSA + CRF", "ours"]
    assert [row.run for row in rows["unfiltered_crf"]] == ["ours"]
    assert all((row.rank is None) == row.published for item in tables for row in item.rows)
    assert [row.rank for row in rows["true_labels_crf"]] == [None, 1]
    for own in ("mini", "own devkit"):
        (its,) = [item for item in tables if own in {row.run for row in item.rows}]
        assert [row.run for row in its.rows] == [own]


def test_a_published_row_says_how_it_was_measured_and_one_view_stands_apart():
    one_view = "448 square, one view"
    runs = [
        record("many", evaluated=VOC_VAL, online_unfiltered=74),
        record("one", evaluated=VOC_VAL, evaluation=one_view, online_unfiltered=71),
    ]
    tables = {item.evaluation: item for item in leaderboard(runs, dataset="VOC", protocol="unfiltered")}
    assert set(tables) == {COSA, one_view, AS_MEASURED, "320 square, one view"}
    assert [row.run for row in tables["320 square, one view"].rows] == ["ExCEL"]
    assert [row.run for row in tables[one_view].rows] == ["SeCo", "MoRe", "one", "DuPL", "DuPL", "ToCo"]
    assert {row.run for row in tables[COSA].rows} == {"many"}
    assert {row.run for row in tables[AS_MEASURED].rows} == {"WeCLIP", "CoSA (released log)"}
    lines = to_markdown([tables[AS_MEASURED]]).splitlines()
    (weclip,) = [line for line in lines if "WeCLIP" in line]
    assert "longer side 512, scales 0.75 1 + mirror, mean, merged at the grid" in weclip
    assert "published 2024 (CLIP, not verified)" in weclip


@pytest.mark.parametrize("of", ["320 square", "192 square", "own size", "448 square, merged at the image"])
def test_one_view_of_another_size_or_geometry_is_another_evaluation(of):
    evaluation = ", one view, ".join(of.split(", ")) if ", " in of else f"{of}, one view"
    beside = {"ExCEL"} if of == "320 square" else set()
    run = record("one", evaluated=VOC_VAL, evaluation=evaluation, online_unfiltered=71)
    (table,) = [item for item in leaderboard([run]) if item.runs]
    assert {row.run for row in table.rows} == {"one"} | beside


def test_runs_come_first_and_what_is_unstated_stands_beside_none():
    runs = [
        record("mini", "VOC-mini", online_unfiltered=20),
        record("voc", evaluated=VOC_VAL, online_unfiltered=70),
    ]
    tables = leaderboard(runs)
    assert [item.rows[0].benchmark or item.dataset for item in tables[:2]] == ["VOC val", "VOC-mini"]
    assert not any(item.runs for item in tables[2:])
    unstated = [item for item in tables if any(row.protocol == "unstated" for row in item.rows)]
    assert [item.title for item in unstated] == [
        "VOC val, unstated protocol: not comparable",
        "VOC (split not named), unstated protocol: not comparable",
        "COCO val, unstated protocol: not comparable",
        "COCO (split not named), unstated protocol: not comparable",
    ]
    assert not any(item.runs for item in unstated)
    assert "CoSA-MS" in {row.run for row in unstated[0].rows}


def test_without_any_run_the_published_tables_remain():
    assert [item.title for item in leaderboard([])] == [
        "VOC val, unfiltered, each as measured",
        "VOC val, unfiltered, one view, each as measured",
        "VOC val, true_labels, each as measured",
        "VOC val, unfiltered_crf, each as measured",
        f"VOC val, true_labels_crf, {COSA}, released CRF",
        "VOC val, unstated protocol: not comparable",
        "VOC (split not named), unstated protocol: not comparable",
        "VOC test, server",
        f"COCO val, true_labels, {COSA}",
        "COCO val, unfiltered_crf, each as measured",
        f"COCO val, true_labels_crf, {COSA}, released CRF",
        "COCO val, unstated protocol: not comparable",
        "COCO val_part, unfiltered, while training",
        "COCO (split not named), unstated protocol: not comparable",
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
    protocols = [item.protocol for item in leaderboard([run], protocol="predicted_labels")]
    assert protocols == ["predicted_labels", CAM_CONTROL]


def test_filters():
    runs = [record("a", online_unfiltered=70), record("b", "VOC-mini", online_unfiltered=80)]
    assert [t.dataset for t in leaderboard(runs, dataset="voc-mini")] == ["VOC-mini"]
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
    runs = [
        record("our | [b]run", evaluated=VOC_VAL, online_true_labels=75, assignment_true_labels=math.nan),
    ]
    tables = leaderboard(runs, dataset="VOC", protocol="true_labels")[:1]
    markdown = to_markdown(tables)
    assert "| 1 | our \\| [b]run | r | online | 75.0 | vit |" in markdown
    assert markdown.count("| published") == 1
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(rows) == 2
    (ours,) = [row for row in rows if row["status"] == "finished"]
    assert (ours["rank"], float(ours["miou"]), ours["seed"]) == ("1", 75.0, "1")
    assert (ours["evaluation"], ours["images"], ours["image_set"]) == (COSA, "1449", "aaaaaaaabbbb")
    (content,) = json.loads(to_json(tables))
    assert content["title"] == f"VOC val (1,449 images), true_labels, {COSA}"
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


def test_settings_and_times_come_out_of_a_real_store(store):
    params = {"evaluation.size": "192", "evaluation.scales": "[1.0]", "evaluation.flip": "False"}
    client = connect(store)
    for name, status in (("ended", "FINISHED"), ("taken up again", "FINISHED")):
        run_id = create_run(store, "settings", name, params=params, tags={"data_fingerprint_train": name})
        client.log_metric(run_id, "final/online/miou_unfiltered", 10.0)
        client.set_terminated(run_id, status)
        if name != "ended":
            client.update_run(run_id, status="RUNNING")
    runs = {run.name: run for run in read_runs(store, ["settings"])}
    assert runs["ended"].evaluation == "192 square, one view, merged at the resized image"
    assert runs["ended"].crf == "CRF: settings not recorded"
    assert runs["ended"].seconds is not None
    assert runs["taken up again"].seconds is None
    # other training images: no seed of the same experiment
    assert runs["ended"].digest != runs["taken up again"].digest


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
