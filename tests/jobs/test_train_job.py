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
from tests.integration.small_run import make_shards, small_config, task_of

PROJECT = Path(__file__).resolve().parents[2]


def call(script: str, *words: str, cwd: Path = PROJECT, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / script), *words]
    env = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False)


def test_help_lists_every_option_and_recipe():
    text = call("jobs/train.py", "--help").stdout
    assert all(f"--{key} " in text for key in known_keys())
    assert "voc_released" in text


def test_print_config_shows_the_resolved_run():
    done = call("jobs/train.py", "--recipe", "voc_mini", "--losses.energy", "0", "--print-config")
    assert done.returncode == 0
    shown = yaml.safe_load(done.stdout)
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
def test_a_user_error_is_one_line_before_anything_starts(words, part, tmp_path):
    done = call("jobs/train.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert part in lines[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--resume", "s", "--recipe", "tiny"], ["--resume", "s", "--trials", "3"]])
def test_a_sweep_that_is_taken_up_again_keeps_its_plan(words, tmp_path):
    done = call("sweeps/run.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert words[2] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "variables", "part"),
    [
        (
            "jobs/train.py",
            {"RAY_ADDRESS": "127.0.0.1:9"},
            "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9",
        ),
        ("jobs/train.py", {"TMPDIR": "/tmp/" + "x" * 84}, "TMPDIR is too long"),
        (
            "sweeps/run.py",
            {"RAY_ADDRESS": "127.0.0.1:9"},
            "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9",
        ),
    ],
)
def test_where_ray_cannot_work_nothing_is_made_and_the_name_stays_free(script, variables, part, tmp_path):
    make_shards(tmp_path / "shards")
    words = ["--recipe", "tiny", "--data.shards", str(tmp_path / "shards"), "--output", str(tmp_path / "out")]
    words += [] if script == "jobs/train.py" else ["--scheduler", "none"]
    done = call(script, *words, "--name", "r", cwd=tmp_path, **variables)
    assert done.returncode == 2
    assert part in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_evaluated_again_with_the_same_numbers(tmp_path):
    shards = make_shards(tmp_path / "shards")
    folder = tmp_path / "run"
    config = small_config(shards, tmp_path, "run", training={"steps": 3, "checkpoint_every": 3})
    reports = run_worker(task_of(config, folder, 4))
    done = call("jobs/evaluate.py", str(folder), "--checkpoint", "best", "--control")
    assert done.returncode == 0, done.stderr
    assert f"{reports['online'].miou('unfiltered'):.2f}" in done.stdout
    assert "chosen on train" in done.stdout
    written = (folder / "evaluation_val_online.json").read_text()
    assert written == (folder / "report_online.json").read_text()
    missing = call("jobs/evaluate.py", str(folder), "--checkpoint", "99")
    assert missing.returncode == 2
    assert "there are: step-00000003" in missing.stderr
