from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cosa_dist.tracking.mlflow_client import connect
from cosa_dist.tracking.mlflow_runs import create_run

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "leaderboard.py"


@pytest.fixture
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("leaderboard_job", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_imports_nothing_heavy():
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print([m for m in ('mlflow', 'torch', 'ray', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--tracking-uri" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_a_store_it_shows_what_is_published_and_one_hint(job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert job.main([]) == 0
    shown = capsys.readouterr()
    assert "CoSA-MS" in shown.out
    assert "VOC val, unfiltered" in shown.out
    assert "no tracking store at" in shown.err
    assert "jobs/train.py" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_named_store_that_is_missing_is_an_error_of_one_line(job, tmp_path, capsys):
    assert job.main(["--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "none.db" in shown.err
    assert shown.out == ""


def test_markdown_csv_and_json_of_one_experiment(job, store, tmp_path, capsys):
    run_id = create_run(store, "job", "best run", tags={"dataset": "VOC-mini", "split": "val"})
    connect(store).log_metric(run_id, "final/assignment/miou_unfiltered", 45.67)
    create_run(store, "job", "still training")
    files = [tmp_path / "out" / "board.csv", tmp_path / "out" / "board.json"]
    arguments = ["--tracking-uri", store, "--experiment", "job", "--markdown", "--no-published"]
    assert job.main([*arguments, "--csv", str(files[0]), "--json", str(files[1])]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("### VOC-mini val, unfiltered\n")
    assert "| 1 | best run |" in shown.out
    assert "CoSA" not in shown.out
    assert "without a final evaluation: 1 running" in shown.err
    assert "best run" in files[0].read_text()
    assert json.loads(files[1].read_text())[0]["rows"][0]["network"] == "assignment"
