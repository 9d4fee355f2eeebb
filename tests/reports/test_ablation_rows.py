"""Rows of an ablation: what they hold, that they survive on disk, and the table made from them."""

from __future__ import annotations

import dataclasses

import pytest

from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.reports.ablation_rows import AblationRow, append_row, as_markdown, make_row, read_rows


def row(combination: str, seed: int, unfiltered: float, **changes: object) -> AblationRow:
    plain = AblationRow(
        combination=combination,
        parts=("separation",) if combination == "with" else (),
        seed=seed,
        recipe="demo",
        dataset="synthetic",
        commit="abc",
        network="online",
        miou={"unfiltered": unfiltered, "cam_true_labels": 30.0, "aux_cam_true_labels": None},
        iou={"background": 90.0, "train": unfiltered + 1},
        context={"background": 75.0, "train": 25.0},
        seconds=60.0,
    )
    return dataclasses.replace(plain, **changes)


def test_a_row_holds_the_scores_of_the_report_by_class_name():
    score = SegmentationScore(50.0, 80.0, 60.0, (90.0, None), 25.0, (75.0, 25.0))
    report = EvalReport(
        network="assignment",
        class_names=("train",),
        images=3,
        images_without_mask=0,
        scores={"unfiltered": score, "cam_true_labels": dataclasses.replace(score, miou=None)},
        map_image=None,
        map_class=None,
        aux_map_class=None,
    )
    made = make_row(
        "with", ["separation"], report, seed=2, recipe="demo", dataset="d", commit="c", seconds=1.5
    )
    assert made.miou == {"unfiltered": 50.0, "cam_true_labels": None}
    assert made.iou == {"background": 90.0, "train": None}
    assert made.context == {"background": 75.0, "train": 25.0}
    assert (made.parts, made.network, made.seed) == (("separation",), "assignment", 2)
    classifiers = make_row(
        "none", [], report, seed=2, recipe="demo", dataset="d", commit="c", seconds=1.5, segments=False
    )
    assert (classifiers.miou, classifiers.iou, classifiers.context) == ({"cam_true_labels": None}, {}, {})
    table = as_markdown([classifiers], ["separation"], "train").splitlines()
    assert table[2].split("|")[3:-1] == [" - "] * 6 + [" 2 "]


def test_rows_come_back_as_they_were_appended(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    rows = [row("with", 0, 50.0), row("without", 1, 40.5)]
    for one in rows:
        append_row(path, one)
    assert read_rows(path) == rows


@pytest.mark.parametrize("line", ["{", "[]", '{"combination": "x", "parts": []}', "3"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    append_row(path, row("with", 0, 50.0))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_rows(path)


def test_the_table_gives_mean_and_range_over_the_seeds():
    rows = [row("without", 0, 40.0), row("with", 1, 52.0), row("with", 0, 49.0)]
    header, _, without, with_, _, source = as_markdown(rows, ["separation"], "train").splitlines()
    assert header.startswith("| combination | separation | unfiltered |")
    assert [cell.strip() for cell in without.split("|")[1:-1]] == [
        *("without", "", "40.0", "-", "30.0", "-", "25.0", "41.0", "0")
    ]
    assert [cell.strip() for cell in with_.split("|")[1:-1]] == [
        *("with", "x", "50.5 (49.0 to 52.0)", "-", "30.0 (30.0 to 30.0)", "-"),
        *("25.0 (25.0 to 25.0)", "51.5 (50.0 to 53.0)", "0 1"),
    ]
    assert "synthetic val; recipe demo; commits abc" in source


def test_rows_of_different_images_make_no_table():
    rows = [row("with", 0, 50.0, image_set="a"), row("with", 1, 51.0), row("with", 2, 52.0, image_set="a")]
    assert "51.0 (50.0 to 52.0)" in as_markdown(rows, ["separation"])
    with pytest.raises(ValueError, match="different images or classes"):
        as_markdown([*rows, row("with", 3, 60.0, image_set="b")], ["separation"])
