from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.tracking import tracker as tracker_module
from cosa_dist.tracking.mlflow_runs import connect, create_run, entity_name, finish_run, reopen_run
from cosa_dist.tracking.store import StoreError
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.tracking.upload import replay


def history(uri: str, run_id: str, key: str) -> list[tuple[int, int, float]]:
    found = connect(uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.timestamp, metric.value) for metric in found)


class Clock:
    """Stands for the module `time`; the times of the metrics are its `ms`."""

    def __init__(self, monkeypatch) -> None:
        self.ms = 0
        monkeypatch.setattr(tracker_module, "time", self)

    def time(self) -> float:
        return self.ms / 1000


def log_steps(tracker: Tracker, clock: Clock, steps: range, offset: int) -> None:
    """Losses of some steps, recorded at (offset + step) ms."""
    for step in steps:
        clock.ms = offset + step
        tracker.log_metrics({"loss": float(step)}, step)


def test_new_run_has_name_tags_params_and_parent(store):
    parent = create_run(store, "tracker", "sweep")
    params = {f"section.key{number}": "x" for number in range(230)}
    params |= {"long": "v" * 9000, "odd,name": "1"}
    run_id = create_run(
        store, "tracker", "trial 1", tags={"dataset": "VOC"}, params=params, parent_run_id=parent
    )
    run = connect(store).get_run(run_id)
    assert run.info.run_name == "trial 1"
    assert run.info.status == "RUNNING"
    assert run.data.tags["dataset"] == "VOC"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert len(run.data.params) == 232
    assert run.data.params["long"] == "v" * 6000
    assert run.data.params["odd_name"] == "1"


def test_a_deleted_experiment_is_one_line(store):
    create_run(store, "gone", "run")
    client = connect(store)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(StoreError, match="mlflow experiments restore") as caught:
        create_run(store, "gone", "run")
    assert "\n" not in str(caught.value)


def test_everything_logged_is_in_the_run_after_close(store, tmp_path, cold_start, caplog):
    run_id = create_run(store, "tracker", "all kinds")
    file = tmp_path / "note.txt"
    file.write_text("hello")
    tracker = Tracker(tmp_path / "run", store, run_id)
    for step in range(5):
        tracker.log_metrics({"loss/total": step / 4, "bad(name)": 1.0}, step)
    tracker.log_metrics({"nan": math.nan}, 5)
    tracker.set_tags({"seed": "3"})
    tracker.log_artifact(file, "notes")
    tracker.log_table([{"class": "cat", "iou": 0.5}], "classes")
    tracker.close("FINISHED")
    assert caplog.text == ""
    assert [(step, value) for step, _, value in history(store, run_id, "loss/total")] == [
        (step, step / 4) for step in range(5)
    ]
    assert len(history(store, run_id, "bad_name_")) == 5
    assert math.isnan(history(store, run_id, "nan")[0][2])
    run = connect(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["seed"] == "3"
    artifacts = cold_start.folder / "artifacts" / run_id / "artifacts"
    assert (artifacts / "notes" / "note.txt").read_text() == "hello"
    assert json.loads((artifacts / "tables" / "classes.json").read_text()) == [{"class": "cat", "iou": 0.5}]
    tracker.log_metrics({"late": 1.0}, 9)
    tracker.close("FAILED")
    assert connect(store).get_run(run_id).info.status == "FINISHED"


def test_a_run_can_be_ended_and_reopened_from_outside(store):
    run_id = create_run(store, "tracker", "reopened")
    for status in ("KILLED", "FAILED"):
        finish_run(store, run_id, status)
        assert connect(store).get_run(run_id).info.status == status
    reopen_run(store, run_id)
    assert connect(store).get_run(run_id).info.status == "RUNNING"


def test_a_store_that_is_away_does_not_undo_a_finished_run(store, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_id = create_run(store, "tracker", "told")
    assert finish_run(store, run_id, "FINISHED")
    assert not finish_run("http://127.0.0.1:9", run_id, "FINISHED")
    assert not reopen_run("http://127.0.0.1:9", run_id)
    assert caplog.text.count("http://127.0.0.1:9 does not take it") == 2


def test_a_resumed_run_has_each_point_once_and_what_the_crash_kept_back(store, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    run_id = create_run(store, "tracker", "resumed")
    # the first process: steps 0-9 are in the run folder, but only 0-4 reached MLflow before it died
    first = Tracker(tmp_path)
    log_steps(first, clock, range(5), 100)
    assert replay(tmp_path, store, run_id) == 5
    log_steps(first, clock, range(5, 10), 100)
    finish_run(store, run_id, "FAILED")
    # the second one repeats from step 7
    tracker = Tracker(tmp_path, store, run_id)
    tracker.flush()
    assert connect(store).get_run(run_id).info.status == "RUNNING"
    log_steps(tracker, clock, range(7, 12), 200)
    tracker.close("KILLED")
    expected = [(s, (100 if s < 10 else 200) + s, float(s)) for s in range(12)]
    assert history(store, run_id, "loss") == expected
    assert connect(store).get_run(run_id).info.status == "KILLED"


def test_replay_sends_the_whole_run_folder_once(store, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    run_id = create_run(store, "tracker", "replayed")
    tracker = Tracker(tmp_path / "run")
    log_steps(tracker, clock, range(3), 50)
    tracker.set_tags({"dataset": "VOC-mini"})
    tracker.log_table([{"a": 1}], "t")
    tracker.close("FINISHED")
    assert replay(tracker.folder, store, run_id) == 3
    assert replay(tracker.folder, store, run_id) == 0
    assert history(store, run_id, "loss") == [(s, 50 + s, float(s)) for s in range(3)]
    client = connect(store)
    run = client.get_run(run_id)
    assert run.data.tags["dataset"] == "VOC-mini"
    assert run.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run_id, "tables")] == ["tables/t.json"]


def test_replay_leaves_the_status_of_a_run_that_was_killed_to_the_driver(store, tmp_path):
    run_id = create_run(store, "tracker", "killed")
    Tracker(tmp_path).log_metrics({"loss": 1.0}, 1)
    finish_run(store, run_id, "FAILED")
    assert replay(tmp_path, store, run_id) == 1
    assert connect(store).get_run(run_id).info.status == "FAILED"


def test_replay_without_metrics_names_the_file(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        replay(tmp_path, store, create_run(store, "tracker", "empty"))


def test_a_deleted_run_neither_blocks_nor_raises(store, tmp_path, caplog):
    run_id = create_run(store, "tracker", "deleted")
    connect(store).delete_run(run_id)
    tracker = Tracker(tmp_path, store, run_id, patience=2.0)
    tracker.log_metrics({"loss": 1.0, "lr": 2.0}, 1)
    tracker.close()
    assert "did not reach" in caplog.text


def test_without_a_store_only_the_mirror_is_written(tmp_path: Path):
    tracker = Tracker(tmp_path)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.flush()
    tracker.close()
    assert tracker.upload is None
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@given(st.text(max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(entity_name(name))
    assert len(entity_name(name)) <= 250


def test_ordinary_names_stay():
    for name in ("loss/total", "final/online/miou_unfiltered", "losses.weight", "images per s"):
        assert entity_name(name) == name
