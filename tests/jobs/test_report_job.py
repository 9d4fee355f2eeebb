"""jobs/report.py as a user meets it."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from tests.inference.conftest import trained_run  # noqa: F401


@pytest.fixture
def call(run_job):
    return partial(run_job, "jobs/report.py")


def test_a_trained_runs_page_shows_curves_confusion_and_images(call, trained_run, tmp_path):  # noqa: F811
    page = tmp_path / "pages" / "run.html"
    code, shown, _ = call(trained_run, "--out", page, "--images", 4, "--shown", 2)
    assert code == 0
    assert f"written {page}" in shown
    text = page.read_text()
    assert "4 validation images, unfiltered" in text
    assert "<th>mIoU, 95 %</th>" in text
    assert '<td class="value">too few images</td>' in text  # where an interval would stand
    assert text.count("Worst images") == text.count("Best images") == 1
    assert "train/total" in text
    assert text.count("CAM of ") == text.count("prediction of ") - 4 == 3
    assert "the run kept (step 3)" in text
    assert [path.name for path in page.parent.iterdir()] == ["run.html"]


def test_without_shards_the_page_says_what_is_missing(call, trained_run, tmp_path):  # noqa: F811
    page = tmp_path / "run.html"
    code, _, errors = call(trained_run, "--out", page, "--shards", tmp_path / "gone")
    assert code == 0
    assert "no confusion, best and worst images: no shard folder" in errors
    assert "Not shown: no shard folder" in page.read_text()


def test_a_run_without_checkpoint_has_a_page(call, trained_run, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained_run / "metrics.jsonl", run)
    (run / "config.yaml").write_text("name: x\n")
    assert call(run)[0] == 0
    assert "holds no trained network" in (run / "report.html").read_text()


def test_every_kept_checkpoint_is_a_column_and_a_damaged_one_is_said(call, trained_run, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for step in (1, 2):
        shutil.copytree(run / "checkpoints/step-00000003", run / f"checkpoints/step-{step:08d}")
    (run / "checkpoints/step-00000002/online.safetensors").write_bytes(b"")
    assert call(run, "--images", 2, "--followed", 2)[0] == 0
    text = (run / "report.html").read_text()
    assert "the run kept (step 1, 3)" in text
    assert "step-00000002: online.safetensors is missing" in text
    assert text.count("CAM of ") == 4


def test_bad_input_is_one_line(call, tmp_path):
    code, _, errors = call(tmp_path)
    assert code == 2
    assert "is no run folder" in errors
    assert call(tmp_path, "--images", -1)[0] == 2
    assert call(tmp_path, "--imges", 1)[0] == 2
