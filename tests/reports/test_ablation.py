"""Rows of an ablation: what they hold, that they survive on disk, and the table made from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cosa_dist.config.ablation import Combination, read_ablation
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.sweep.plan import SweepPlan, trial_config
from cosa_dist.distributed.sweep.run import SweepResult
from cosa_dist.distributed.sweep.trial import Trial
from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.reports.ablation import (
    AblationRow,
    as_markdown,
    read_rows,
    rows_to_text,
    stored_table,
    write_ablation,
)

PROJECT = Path(__file__).resolve().parents[2]


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


def a_report(network: str, miou: float | None) -> EvalReport:
    score = SegmentationScore(miou, 80.0, 60.0, (90.0, None), 25.0, (75.0, 25.0))
    return EvalReport(
        network=network,
        class_names=("train",),
        images=3,
        images_without_mask=0,
        scores={"unfiltered": score, "cam_true_labels": dataclasses.replace(score, miou=10.0)},
        map_image=None,
        map_class=None,
        aux_map_class=None,
    )


def test_rows_of_a_sweep_are_those_of_its_finished_trials(tmp_path):
    combinations = [
        Combination("none", (), {"kind": "control"}),
        Combination("with", ("separation",), {"losses.separation": 0.1}),
    ]
    base = RunConfig(output=str(tmp_path), name="sweep", recipe="demo", data={"shards": "/d/photos"})
    points = [{**c.options, "seed": seed} for seed in (2, 3) for c in reversed(combinations)]
    plan = SweepPlan(base=base.model_dump(mode="json"), points=points, ablation=combinations)
    trials = []
    for options in points:
        config = trial_config(plan.base, options)
        folder = tmp_path / "runs" / config.name
        folder.mkdir(parents=True)
        for network, miou in (("online", 40.0), ("assignment", 50.0)):
            (folder / f"report_{network}.json").write_text(a_report(network, miou).to_json())
        status = "finished" if config.seed == 2 else "failed"
        trials.append(Trial(config.name, options, status, (), 1.5, 1, commit="abc"))
    result = SweepResult(trials, tmp_path / "best.yaml", tmp_path)
    path, table = write_ablation(plan, result, "train")
    none, with_ = read_rows(path)
    assert (with_.combination, with_.parts, with_.seed, with_.network) == (
        *("with", ("separation",), 2, "assignment"),
    )
    assert (with_.recipe, with_.dataset, with_.commit, with_.seconds) == ("demo", "photos", "abc", 1.5)
    assert with_.miou == {"unfiltered": 50.0, "cam_true_labels": 10.0}
    assert with_.iou == {"background": 90.0, "train": None}
    assert with_.context == {"background": 75.0, "train": 25.0}
    # A run of classifiers alone has no segmentation.
    assert (none.miou, none.iou, none.context) == ({"cam_true_labels": 10.0}, {}, {})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[2] == ["none", "", "-", "-", "10.0", "-", "-", "-", "2"]
    assert lines[3] == ["with", "x", "50.0", "-", "10.0", "-", "25.0", "-", "2"]


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row("with", 0, 50.0), row("without", 1, 40.5)]
    path.write_text(rows_to_text(rows))
    assert read_rows(path) == rows


def test_stored_rows_of_the_documentation_make_their_tables():
    ablation = read_ablation(PROJECT / "sweeps" / "ablation.yaml")
    tables = {
        path.stem: stored_table(path, ablation).splitlines()
        for path in (PROJECT / "docs" / "results").glob("*.jsonl")
    }
    assert tables["ablation_demo"][0].startswith("| combination | co training | guided cam | swapping |")
    assert [line.split(" | ")[0] for line in tables["ablation_voc_mini"][2:-2]] == [
        f"| {name}" for name in ("swapped", "reliability", "separation", "dynamic threshold", "whole")
    ]
    assert all("recipe " in lines[-1] for lines in tables.values())


@pytest.mark.parametrize("line", ["{", "[]", '{"combination": "x", "parts": []}', "3"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_text([row("with", 0, 50.0)]) + line + "\n")
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
