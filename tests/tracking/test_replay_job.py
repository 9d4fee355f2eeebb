"""jobs/replay.py: what a store missed of a finished run is sent once; errors are one line."""

from __future__ import annotations

import json

import pytest

from cosa_dist.tracking.mlflow_runs import connect, create_run
from cosa_dist.tracking.tracker import Tracker
from tests.support.programs import Done


def assert_one_line(done: Done, words: str) -> None:
    """The job says in one line why it could not do it."""
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ({"run_id": "0" * 32}, "Run with id=00000000000000000000000000000000 not found"),
        ({"tracking_uri": "sqlite:///{folder}/gone.db"}, "no tracking store at"),
        ({"tracking_uri": "http://127.0.0.1:9"}, "does not answer"),
        ({"run_id": ""}, "trained without tracking"),
        ({"metrics": False}, "metrics.jsonl"),
    ],
)
def test_a_store_that_cannot_take_it_is_one_line(run_job, store, tmp_path, note, words):
    folder = tmp_path / "runs" / "lost"
    content = {"tracking_uri": store, "run_id": create_run(store, "replay", "lost"), "finished": True}
    mirror = Tracker(folder)
    mirror.log_metrics({"loss": 1.0}, 1)
    mirror.close("FINISHED")
    if not note.pop("metrics", True):
        (folder / "metrics.jsonl").unlink()
    content |= {key: value.replace("{folder}", str(tmp_path)) for key, value in note.items()}
    (folder / "run.json").write_text(json.dumps(content))
    assert_one_line(run_job("jobs/replay.py", "lost", "--output", str(tmp_path)), words)
    assert not (tmp_path / "gone.db").exists()


def test_what_is_missing_is_sent_once(run_job, store, tmp_path):
    folder = tmp_path / "runs" / "lonely"
    run_id = create_run(store, "replay", "lonely")
    mirror = Tracker(folder)
    for step in range(4):
        mirror.log_metrics({"loss": float(step)}, step)
    mirror.close("FINISHED")
    (folder / "run.json").write_text(json.dumps({"tracking_uri": store, "run_id": run_id, "finished": True}))
    first = run_job("jobs/replay.py", "lonely", "--output", str(tmp_path))
    assert first.out == "4 points were missing and are there now\n", first.err
    assert connect(store).get_run(run_id).info.status == "FINISHED"
    connect(store).delete_run(run_id)
    deleted = run_job("jobs/replay.py", "lonely", "--output", str(tmp_path))
    assert_one_line(deleted, "tracking store sqlite")
    wrong = run_job("jobs/replay.py", "lonly", "--output", str(tmp_path))
    assert wrong.code == 2
    assert wrong.err.startswith("error: no run named 'lonly'")
    assert "did you mean lonely?" in wrong.err
