"""Rows of results: what they hold of a run's folder, and that they survive on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from cosa_dist.config.ablation import Combination
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.shards.split import FORMAT, FORMAT_VERSION
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.distributed.sweep.plan import SweepPlan, trial_config
from cosa_dist.distributed.sweep.run import SweepResult
from cosa_dist.distributed.sweep.trial import Trial
from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.reports import results
from cosa_dist.reports.result_tables import write_ablation
from cosa_dist.reports.results import (
    ResultRow,
    read_result,
    read_rows,
    rows_to_text,
    settings_of,
    with_options,
)

COMMIT = "0123456789" * 4
FINAL = {"final/training_seconds": 60.0, "final/evaluation_seconds": 5.0}


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
        image_set="1a2b",
    )


def a_run(config: RunConfig, commit: str = COMMIT, finished: bool = True, **metrics: float) -> RunFolder:
    """A run's folder with the reports of two networks, of which the second is better."""
    run = RunFolder.of(config)
    run.create(config, RunNote("", "", finished, commit=commit))
    for network, miou in (("online", 40.0), ("assignment", 50.0)):
        (run.path / f"report_{network}.json").write_text(a_report(network, miou).to_json())
    lines = [{"final/training_seconds": 9.0}, {**FINAL, **metrics}]
    text = [json.dumps({"time_ms": 1, "step": step, "metrics": line}) for step, line in enumerate(lines)]
    run.metrics_file.write_text("\n".join(text) + "\n")
    return run


def mini(tmp_path, **options) -> RunConfig:
    dotted = {"output": str(tmp_path), "name": "run", "data.shards": "/d/photos", "seed": 7}
    return load_config("voc_mini", None, {**dotted, **{k.replace("__", "."): v for k, v in options.items()}})


def test_a_row_is_that_of_the_better_network(tmp_path):
    run = a_run(mini(tmp_path, assignment__threshold__low=0.3, evaluation__every=50))
    row = read_result(run.path, note="twice", machine="two cores")
    assert (row.recipe, row.dataset, row.split, row.seed) == ("voc_mini", "VOC-mini", "val", 7)
    assert (row.commit, row.network, row.images, row.image_set) == (COMMIT, "assignment", 3, "1a2b")
    assert row.miou == {"unfiltered": 50.0, "cam_true_labels": 10.0}
    assert row.iou == {"background": 90.0, "train": None}
    assert row.context == {"background": 75.0, "train": 25.0}
    assert row.options == {"assignment.threshold.low": 0.3}
    assert (row.note, row.machine, row.evaluation) == ("twice", "two cores", "192 square, 5 scales + mirror")
    assert (row.seconds, row.evaluation_seconds) == (60.0, 5.0)


def test_intervals_are_the_reports_or_those_of_a_later_evaluation_with_the_same_scores(tmp_path):
    run, report = a_run(mini(tmp_path)), a_report("assignment", 50.0)
    assert read_result(run.path).interval == {}
    later = {key: dataclasses.replace(score, interval=(1.0, 60.0)) for key, score in report.scores.items()}
    later["cam_true_labels"] = dataclasses.replace(later["cam_true_labels"], miou=11.0)
    again = dataclasses.replace(report, scores=later)
    run.report_file("assignment", "val").write_text(again.to_json())
    assert read_result(run.path).interval == {"unfiltered": (1.0, 60.0)}
    own = {
        **report.scores,
        "unfiltered": dataclasses.replace(report.scores["unfiltered"], interval=(2.0, 61.0)),
    }
    run.report_file("assignment").write_text(dataclasses.replace(report, scores=own).to_json())
    assert read_result(run.path).interval == {"unfiltered": (2.0, 61.0)}


def test_classifiers_alone_have_no_segmentation_and_the_control_chooses_the_network(tmp_path):
    chosen = {"final/online/cam_control_predicted_labels": 33.0}
    row = read_result(a_run(mini(tmp_path, kind="control"), **chosen).path)
    assert (row.network, row.miou) == ("online", {"cam_true_labels": 10.0, "cam_predicted_labels": 33.0})
    assert (row.iou, row.context, row.options) == ({}, {}, {"kind": "control"})


def options(config: RunConfig) -> dict[str, object]:
    return with_options(
        a_row(recipe=config.recipe, settings=settings_of(config, config.model_dump()))
    ).options


def test_options_are_those_that_change_a_result(tmp_path):
    places = {"model__weights": "elsewhere/deit_tiny_patch16_224.pth", "tracking__experiment": "x"}
    same = {"distributed__workers": 2, "evaluation__crf__enabled": True, "training__log_every": 3}
    assert options(mini(tmp_path, **places, **same, evaluation__size=384)) == {}
    weights = mini(tmp_path, model__weights="other.pth", losses__separation=0.1)
    assert options(weights) == {"model.weights": "other.pth", "losses.separation": 0.1}


def test_an_option_that_came_later_is_no_setting_of_an_earlier_run(tmp_path):
    run = a_run(mini(tmp_path, losses__separation=0.1))
    assert {"losses.separation", "losses.energy"} <= read_result(run.path).settings.keys()
    values = yaml.safe_load(run.config_file.read_text())
    del values["losses"]["energy"], values["segmenter"]
    run.config_file.write_text(yaml.safe_dump(values))
    row = read_result(run.path)
    assert row.options == {"losses.separation": 0.1}
    assert not {key for key in row.settings if key == "losses.energy" or key.startswith("segmenter.")}


def test_a_recipe_that_has_changed_since_shows_what_a_row_was(tmp_path):
    path = tmp_path / "rows.jsonl"
    config = mini(tmp_path)
    settings = settings_of(config, config.model_dump())
    settings |= {"optimizer.learning_rate": 6e-5, "losses.gone": 1}
    path.write_text(rows_to_text([a_row(recipe="voc_mini", settings=settings, options={"was": "nothing"})]))
    assert '"options"' not in path.read_text()
    assert read_rows(path)[0].options == {"optimizer.learning_rate": 6e-5, "losses.gone": 1}


def test_a_run_that_is_not_over_or_has_no_commit_has_no_row(tmp_path):
    running = a_run(mini(tmp_path), finished=False)
    with pytest.raises(ConfigError, match="run is not finished"):
        read_result(running.path)
    earlier = a_run(mini(tmp_path, name="earlier"), commit="")
    with pytest.raises(ConfigError, match="give it with --commit"):
        read_result(earlier.path)
    assert read_result(earlier.path, commit="abc").commit == "abc"
    (earlier.path / "trial.json").write_text(json.dumps({"options": {}, "commit": "def"}))
    assert read_result(earlier.path, commit="abc").commit == "def"


def test_commit_and_machine_may_come_from_the_tracking_store(tmp_path, monkeypatch):
    run = a_run(mini(tmp_path), commit="")
    tags = {"git_commit": "fed", "cpu_count": "2", "gpus": ""}
    monkeypatch.setattr(results, "read_tags", lambda uri, run_id: tags)
    row = read_result(run.path, commit="abc")
    assert (row.commit, row.machine) == ("fed", "2 CPUs")
    tags["gpus"] = "NVIDIA H200"
    assert read_result(run.path).machine == "NVIDIA H200"
    assert read_result(run.path, machine="half of it").machine == "half of it"


def a_labelling(first: RunFolder, **settings) -> Path:
    """The folder of the pseudo-masks that a run has made, without the masks."""
    folder = first.beside("pseudo-masks")
    (folder.path / "shards").mkdir(parents=True)
    folder.write_note(RunNote("", "", finished=True, commit="def"))
    quality = {"miou": 41.5, "miou_missed": 28.5, "ignored": 43.25, "images_with_truth": 1000}
    quality |= {"iou": {"background": 60.0, "train": None}, "image_set": "3c4d"}
    (folder.path / "shards" / "quality.json").write_text(json.dumps(quality))
    made = {"run": first.name, "step": 600, "network": "online", "settings": settings}
    content = {"format": FORMAT, "format_version": FORMAT_VERSION}
    content["splits"] = {"train": {"pseudo_masks": made}, "val": {}}
    (folder.path / "shards" / "dataset.json").write_text(json.dumps(content))
    return folder.path


def test_pseudo_masks_have_a_row_with_how_they_were_made(tmp_path):
    masks = a_labelling(a_run(mini(tmp_path)), source="agreement", cam_high=0.5)
    row = read_result(masks, note="again")
    assert (row.recipe, row.seed, row.commit, row.network) == ("voc_mini", 7, "def", "online")
    assert (row.split, row.images, row.image_set, row.ignored) == ("train", 1000, "3c4d", 43.25)
    assert row.miou == {"pseudo_masks": 41.5, "pseudo_masks_missed": 28.5}
    assert (row.options, row.note) == ({"pseudo_masks.source": "agreement"}, "pseudo-masks, again")


def test_a_segmenter_says_which_masks_it_learned_from(tmp_path):
    masks = a_labelling(a_run(mini(tmp_path, name="first")), source="cam")
    places = {"output": str(tmp_path), "name": "second", "data.shards": str(masks / "shards")}
    second = load_config("voc_mini_ms", None, {**places, "stage_one.recipe": ""})
    row = read_result(a_run(second).path)
    assert (row.options, row.note) == ({"pseudo_masks.source": "cam"}, "on masks of voc_mini")
    truth = second.model_copy(update={"supervision": "truth", "name": "truth"})
    row = read_result(a_run(truth).path)
    assert (row.options, row.note) == ({"supervision": "truth"}, "")


def test_rows_of_a_sweep_are_those_of_its_finished_trials(tmp_path):
    combinations = [
        Combination("none", (), {"kind": "control"}),
        Combination("with", ("separation",), {"losses.separation": 0.1}),
    ]
    base = mini(tmp_path, name="sweep")
    points = [{**c.options, "seed": seed} for seed in (2, 3) for c in reversed(combinations)]
    plan = SweepPlan(base=base.model_dump(mode="json"), points=points, ablation=combinations)
    trials = []
    for options in points:
        config = trial_config(plan.base, options)
        a_run(config)
        status = "finished" if config.seed == 2 else "failed"
        trials.append(Trial(config.name, options, status, {}, 1.5, 1))
    path, table = write_ablation(plan, SweepResult(trials, tmp_path / "best.yaml", tmp_path), "train")
    with_, none = read_rows(path)
    assert (with_.seed, with_.options) == (2, {"losses.separation": 0.1})
    assert (none.seed, none.options) == (2, {"kind": "control"})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == [
        *("combination", "unfiltered", "CAM (true_labels)", "context as train"),
        *("training, evaluation", "seeds", "commits"),
    ]
    assert lines[2] == ["none", "-", "10.0", "-", "1 min 00 s, 5 s", "2", COMMIT[:7]]
    assert lines[3] == ["with", "50.0", "10.0", "25.0", "1 min 00 s, 5 s", "2", COMMIT[:7]]


def a_row(**changes) -> ResultRow:
    return ResultRow(**{"recipe": "demo", "dataset": "d", "commit": "c", "seed": 0, "miou": {}, **changes})


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [a_row(options={"a.b": [1.0]}, iou={"x": None}), a_row(seed=None, miou={"unfiltered": 40.5})]
    path.write_text(rows_to_text(rows))
    assert read_rows(path) == rows


def test_an_ablations_older_row_keeps_its_combination(tmp_path):
    path = tmp_path / "ablation.jsonl"
    older = {"combination": "whole", "parts": ["separation"], "seed": 1, "recipe": "demo", "dataset": "d"}
    older |= {"commit": "c", "network": "online", "miou": {"unfiltered": 5.0}, "iou": {}, "context": {}}
    path.write_text(json.dumps({**older, "seconds": 3.0}) + "\n")
    assert read_rows(path) == [
        a_row(seed=1, combination="whole", network="online", miou={"unfiltered": 5.0}, seconds=3.0)
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"recipe": "x", "miou": []}', "3"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_text([a_row()]) + line + "\n")
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_rows(path)
