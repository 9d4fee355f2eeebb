"""jobs/train.py and jobs/evaluate.py as a user meets them: help, errors in one line, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cosa_dist.config.options import known_keys
from cosa_dist.distributed.worker import run_worker
from cosa_dist.evaluation.report import EvalReport
from tests.integration.small_run import make_shards, small_config, task_of
from tests.support.programs import PATIENCE, command


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """The present folder of a test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_lists_every_option_and_recipe(run_job):
    text = run_job("jobs/train.py", "--help").out
    assert all(f"--{key} " in text for key in known_keys())
    assert "voc_released" in text


def test_print_config_shows_the_resolved_run(run_job):
    done = run_job("jobs/train.py", "--recipe", "voc_mini", "--losses.energy", "0", "--print-config")
    assert done.code == 0
    shown = yaml.safe_load(done.out)
    assert shown["losses"]["energy"] == 0
    assert shown["data"]["crop_size"] == 192


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--recipe", "voc_mni"], "did you mean voc_mini?"),
        (["--recipe", "voc_mini", "--seeds", "1"], "unknown option --seeds; did you mean seed?"),
        (["--recipe", "demo", "--data.shards", "/nowhere"], "/nowhere"),
        (["--recipe", "voc_mini", "--model.weights", "gone.pth"], "gone.pth"),
        (["--resume", "gone"], "no run named 'gone'"),
        (["--recipe", "tiny", "--restarted"], "without --name"),
        (
            ["--resume", "gone", "--recipe", "tiny"],
            "own settings (config.yaml or sweep.json in its folder): leave",
        ),
        (["--resume", "gone", "--print-config"], "leave out --print-config"),
        (["--resume", "gone", "--seed", "3"], "--seed: a resumed run keeps"),
        (["--recipe", "tiny", "--training.steps", "0"], "command line: training.steps = 0"),
    ],
)
def test_a_user_error_is_one_line_before_anything_starts(run_job, words, part, empty_folder):
    done = run_job("jobs/train.py", *words)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert part in lines[0]
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("words", [["--resume", "s", "--recipe", "tiny"], ["--resume", "s", "--trials", "3"]])
def test_a_sweep_that_is_taken_up_again_keeps_its_plan(run_job, words, empty_folder):
    done = run_job("sweeps/run.py", *words)
    assert done.code == 2
    assert words[2] in done.err


def small(folder: Path) -> list[str]:
    """Options of a run that could start, on shards in the folder."""
    place = ["--data.shards", str(make_shards(folder / "shards")), "--output", str(folder / "out")]
    return ["--recipe", "tiny", *place, "--name", "r"]


@pytest.mark.parametrize(
    ("script", "more"), [("jobs/train.py", []), ("sweeps/run.py", ["--scheduler", "none"])]
)
def test_where_no_cluster_answers_nothing_is_made_and_the_name_stays_free(
    run_job, script, more, empty_folder, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    done = run_job(script, *small(empty_folder), *more)
    assert done.code == 2
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in done.err.splitlines()[-1]
    assert not (empty_folder / "out").exists()


def test_where_ray_cannot_work_a_process_ends_with_one_line(tmp_path):
    """In a process of its own, since a process asks for its folder of temporary files once."""
    done = subprocess.run(
        command("jobs/train.py", *small(tmp_path), "--distributed.workers", "2"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"TMPDIR": "/tmp/" + "x" * 84},
        check=False,
    )
    assert done.returncode == 2
    assert "TMPDIR is too long" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_evaluated_again_with_the_same_numbers(run_job, tmp_path):
    shards = make_shards(tmp_path / "shards")
    folder = tmp_path / "run"
    config = small_config(shards, tmp_path, "run", training={"steps": 3, "checkpoint_every": 3})
    reports = run_worker(task_of(config, folder, 4))
    done = run_job("jobs/evaluate.py", folder, "--checkpoint", "best", "--control")
    assert done.code == 0, done.err
    assert f"{reports['online'].miou('unfiltered'):.2f}" in done.out
    assert "chosen on train" in done.out
    written = (folder / "evaluation_val_online.json").read_text()
    assert written == (folder / "report_online.json").read_text()
    missing = run_job("jobs/evaluate.py", folder, "--checkpoint", "99")
    assert missing.code == 2
    assert "there are: step-00000003" in missing.err
    words = ["--evaluation.protocol", "toco", "--evaluation.scales", "[1.0]", "--limit", "1", "--crf"]
    other = run_job("jobs/evaluate.py", folder, *words)
    assert other.code == 0, other.err
    assert "measured at: own size, 1 scale + mirror, maximum, the first 1 of" in other.out
    assert "images: not for a ranking" in other.out
    found = EvalReport.from_json((folder / "evaluation_val_toco_online.json").read_text())
    assert found.settings["crf"]["iterations"] == 10
    assert (folder / "evaluation_val_online.json").read_text() == written
    refused = run_job("jobs/evaluate.py", folder, "--training.steps", "5")
    assert refused.code == 2
    assert "--training.steps: a trained network takes options of evaluation.* only" in refused.err


@pytest.mark.slow
def test_several_processes_share_an_evaluation(tmp_path):
    shards = make_shards(tmp_path / "shards")
    folder, out = tmp_path / "run", tmp_path / "out"
    config = small_config(shards, tmp_path, "run", training={"steps": 3, "checkpoint_every": 3})
    reports = run_worker(task_of(config, folder, 4))
    out.mkdir()
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "jobs/evaluate.py"]
    done = subprocess.run(
        [sys.executable, *words, str(folder), "--device", "cpu", "--out", str(out), "--control"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written") == 2, "the first process speaks for both"
    shared = EvalReport.from_json((out / "evaluation_val_online.json").read_text())
    alone = reports["online"]
    assert (shared.images, shared.image_set) == (alone.images, alone.image_set)
    assert shared.miou() == pytest.approx(alone.miou(), abs=0.05)
