from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cosa_dist.tracking.mlflow_runs import connect, create_run
from cosa_dist.tracking.store import StoreError

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
    assert "VOC val, unfiltered_crf" in shown.out
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
    assert shown.out.startswith("### VOC-mini val (images not recorded), unfiltered, settings not recorded\n")
    assert "| 1 | best run |" in shown.out
    assert "CoSA" not in shown.out
    assert "without a final evaluation: 1 running" in shown.err
    assert "best run" in files[0].read_text()
    assert json.loads(files[1].read_text())[0]["rows"][0]["network"] == "assignment"


def make_run(store: str, name: str, images: int = 3, **scores: float) -> str:
    tags = {"dataset": "files", "split": "val", "seed": name[-1], "recipe": "r", "image_set": "ab" * 8}
    tags |= {"evaluated_images": str(images), "classes": "2", "benchmark": ""}
    params = {
        "evaluation.size": "64",
        "evaluation.scales": "[1.0]",
        "evaluation.flip": "True",
        "seed": name[-1],
    }
    run_id = create_run(store, "files", name, tags=tags, params=params)
    for protocol, score in scores.items():
        connect(store).log_metric(run_id, f"final/online/miou_{protocol}", score)
    return run_id


def test_the_page_leaves_out_files_that_are_gone_and_says_so(job, store, tmp_path, capsys, caplog):
    good, broken = make_run(store, "whole 0", unfiltered=40), make_run(store, "broken 1", unfiltered=50)
    client = connect(store)
    client.log_text(broken, "no report", "report_online.json")
    client.log_text(good, "no picture", "pictures/a.png")
    page = tmp_path / "board.html"
    arguments = ["--tracking-uri", store, "--experiment", "files", "--no-published", "--html", str(page)]
    assert job.main(arguments) == 0
    shown = capsys.readouterr()
    assert "files val (3 images), unfiltered, 64 square, 1 scale + mirror" in shown.out
    assert [record.args[0] for record in caplog.records] == ["broken 1"]
    assert "reports and pictures are left out: no evaluation report" in caplog.text
    assert "whole 0" in page.read_text()
    assert job.main([*arguments[:5], "--seeds"]) == 0
    assert "40.0 to 50.0" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--html", "--csv", "--json"])
def test_a_file_that_cannot_be_written_is_one_line(job, store, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "board"
    assert job.main(["--tracking-uri", store, "--experiment", "Default", option, str(target)]) == 1
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ")
    assert str(tmp_path / "file") in error


def test_a_store_that_fails_while_the_page_is_made_is_one_line(job, store, tmp_path, capsys, monkeypatch):
    make_run(store, "away 0", unfiltered=40)

    def refuse(uri: str, run_id: str, pictures: int) -> None:
        raise StoreError("tracking store: no such run")

    monkeypatch.setattr("cosa_dist.reports.leaderboard_page.read_details", refuse)
    assert (
        job.main(["--tracking-uri", store, "--experiment", "files", "--html", str(tmp_path / "b.html")]) == 1
    )
    assert capsys.readouterr().err == "error: tracking store: no such run\n"
    assert not (tmp_path / "b.html").exists()


def test_a_wrong_number_of_pictures_is_refused(job, capsys):
    with pytest.raises(SystemExit):
        job.main(["--pictures", "-1"])
    assert "no number of pictures" in capsys.readouterr().err
