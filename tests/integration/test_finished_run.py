"""A run that has trained keeps its scores, whatever else fails after its last step."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from rich.console import Console

from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.distributed import worker
from cosa_dist.distributed.worker import run_worker
from cosa_dist.evaluation import evaluator
from cosa_dist.evaluation.report import read_reports
from cosa_dist.tracking.tracker import Tracker
from tests.integration.small_run import curve, make_shards, small_config, task_of
from tests.integration.test_segmenter_run import segmenter_config

SHORT = {"training": {"steps": 2}}
CONTROL = {**SHORT, "evaluation": {"cam_control": True}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


def shards_without_masks(folder, *bare: str):
    sources = {
        split: [
            replace(record, mask=None, context=None) if split in bare else record
            for record in synthetic_records(split, 6, seed=3, image_size=48)
        ]
        for split in ("train", "val")
    }
    ingest(sources, synthetic_info(), folder, console=Console(quiet=True))
    return folder


def finished(config, folder, caplog) -> list[str]:
    """Run to the end; the lines of warning that it gave."""
    with caplog.at_level(logging.WARNING):
        reports = run_worker(task_of(config, folder, 4))
    assert read_reports(folder) == reports
    assert '"FINISHED"' in (folder / "tags.json").read_text()
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_segmenter_has_no_cam_control(shards, tmp_path, caplog):
    said = finished(segmenter_config(shards, tmp_path, "run", **CONTROL), tmp_path / "run", caplog)
    assert said == ["no CAM control (evaluation.cam_control): a segmenter has no CAMs"]
    assert curve(tmp_path / "run", "final/miou_unfiltered")


@pytest.mark.parametrize("reading", ["mapped", "streaming"])
@pytest.mark.parametrize("bare", ["train", "val"])
def test_without_masks_there_is_no_cam_control(tmp_path, caplog, bare, reading):
    place = shards_without_masks(tmp_path / "shards", bare)
    config = small_config(place, tmp_path, "run", data={"reading": reading}, **CONTROL)
    said = [line for line in finished(config, tmp_path / "run", caplog) if "control" in line]
    reason = {
        "mapped": f"no image of split '{bare}' has a mask",
        "streaming": "the evaluation of the network 'control' found no image with a mask",
    }
    assert len(said) == 1
    assert said[0].startswith(f"no CAM control (evaluation.cam_control): {reason[reading]}")
    assert bool(curve(tmp_path / "run", "final/miou_unfiltered")) == (bare == "train")
    assert len(list((tmp_path / "run/pictures").glob("*.png"))) == 1


def broken(*arguments, **named):
    raise RuntimeError("out of something")


@pytest.mark.parametrize(
    ("where", "name", "line"),
    [
        (worker, "classification_control", "no CAM control (evaluation.cam_control): out of something"),
        (worker, "save_pictures", "no pictures: out of something"),
        (worker, "as_text", "no tables of the reports: out of something"),
        (Tracker, "log_table", "no tables of the reports: out of something"),
        (evaluator, "DenseCrf", "no scores after the dense CRF (evaluation.crf): "),
    ],
)
def test_what_fails_after_the_last_step_costs_itself_alone(
    shards, tmp_path, caplog, monkeypatch, where, name, line
):
    monkeypatch.setattr(where, name, broken)
    evaluation = {"cam_control": True, "crf": {"enabled": name == "DenseCrf"}}
    config = small_config(shards, tmp_path, "run", **SHORT, evaluation=evaluation)
    said = finished(config, tmp_path / "run", caplog)
    assert len(said) == 1
    assert said[0].startswith(line)
    reports = read_reports(tmp_path / "run")
    assert reports["online"].miou() is not None
    assert not any(key.endswith("_crf") for key in reports["online"].scores)
    assert bool(curve(tmp_path / "run", "final/online/cam_control_background")) == (
        name != "classification_control"
    )
    assert (tmp_path / "run/pictures").is_dir() == (name != "save_pictures")


def test_the_control_is_measured_where_it_can_be(shards, tmp_path, caplog):
    assert finished(small_config(shards, tmp_path, "run", **CONTROL), tmp_path / "run", caplog) == []
    assert curve(tmp_path / "run", "final/assignment/cam_control_predicted_labels")
