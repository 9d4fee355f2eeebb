"""Uploading against a store that may be slow or away: nothing lost, nothing doubled, nobody waits."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from cosa_dist.tracking import mlflow_runs, upload
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.tracking.upload import Upload, UploadThread


class Store:
    """Stands for an MLflow client; while `away` is set every call fails."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.batches: list[int] = []
        self.tags: dict[str, str] = {}
        self.files: list[str] = []
        self.status = ""
        self.away = threading.Event()
        self.no_artifacts = False
        self.hang = threading.Event()
        self.hang.set()

    def _answer(self) -> None:
        self.hang.wait(30)
        if self.away.is_set():
            raise ConnectionError("away")

    def log_batch(self, run_id, metrics=(), tags=()) -> None:
        self._answer()
        self.batches += [len(metrics)] if metrics else []
        self.points += [(m.key, m.step, m.value) for m in metrics]
        self.tags |= {tag.key: tag.value for tag in tags}

    def get_metric_history(self, run_id, key):
        self._answer()
        return []

    def log_artifact(self, run_id, path, folder) -> None:
        self._answer()
        if self.no_artifacts:
            raise ConnectionError("no artifact store")
        self.files.append(f"{folder}/{path.rpartition('/')[2]}")

    def update_run(self, run_id, status) -> None:
        self._answer()
        self.status = status

    set_terminated = update_run


@pytest.fixture
def store(monkeypatch) -> Store:
    fake = Store()
    monkeypatch.setattr(upload, "connect", lambda uri: fake)
    return fake


def open_run(folder, patience: float = 10.0) -> Tracker:
    return Tracker(folder, "http://nowhere", "r1", patience=patience)


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last):
        tracker.log_metrics({"loss": float(step)}, step)


def losses(first: int, last: int) -> list[tuple[str, int, float]]:
    return [("loss", step, float(step)) for step in range(first, last)]


def test_everything_arrives_once_in_order_and_in_batches(store, tmp_path, monkeypatch):
    monkeypatch.setitem(mlflow_runs.BATCH, "metrics", 30)
    tracker = open_run(tmp_path)
    log_steps(tracker, 0, 100)
    tracker.set_tags({"split": "val"})
    tracker.log_table([{"class": "cat", "iou": 0.5}], "classes")
    tracker.flush()
    log_steps(tracker, 100, 110)
    tracker.close()
    assert store.points == losses(0, 110)
    assert max(store.batches) == 30
    assert (store.tags, store.files, store.status) == ({"split": "val"}, ["tables/classes.json"], "FINISHED")


def test_an_outage_keeps_everything_and_sends_each_once_afterwards(store, tmp_path, caplog):
    tracker = open_run(tmp_path)
    log_steps(tracker, 0, 20)
    tracker.flush()
    store.away.set()
    with caplog.at_level(logging.INFO):
        for step in range(20, 50):
            log_steps(tracker, step, step + 1)
            tracker.flush()
        assert store.points == losses(0, 20)
        store.away.clear()
        tracker.close("KILLED")
    assert (store.points, store.status) == (losses(0, 50), "KILLED")
    assert caplog.text.count("cannot upload, will try again: away") == 1
    assert caplog.text.count("the store answers again") == 1


def test_after_an_outage_the_thread_tries_again_by_itself(store, tmp_path):
    tracker = Tracker(tmp_path)
    log_steps(tracker, 0, 3)
    store.away.set()
    thread = UploadThread(Upload(tmp_path, "http://nowhere", "r1"), seconds=0.01, longest_pause=0.05)
    time.sleep(0.2)
    assert store.points == []
    store.away.clear()
    deadline = time.monotonic() + 20
    while store.points != losses(0, 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert thread.close(10) == ""


def test_what_did_not_arrive_is_reported_at_close_and_sent_by_the_next_session(store, tmp_path, caplog):
    store.away.set()
    store.status = "FAILED by the driver"
    tracker = open_run(tmp_path, patience=0.3)
    log_steps(tracker, 0, 7)
    tracker.set_tags({"split": "val"})
    tracker.close("FAILED")
    assert "run r1 did not reach http://nowhere completely (away)" in caplog.text
    assert (store.points, store.tags, store.status) == ([], {}, "FAILED by the driver")
    store.away.clear()
    new = open_run(tmp_path / "new")
    new.flush()  # RUNNING since it was created
    assert store.status == "FAILED by the driver"
    again = open_run(tmp_path)
    again.flush()
    assert (store.points, store.tags, store.status) == (losses(0, 7), {"split": "val"}, "RUNNING")
    again.close()
    assert store.status == "FINISHED"


def test_logging_never_waits_for_a_store_that_hangs(store, tmp_path):
    store.hang.clear()
    tracker = open_run(tmp_path, patience=0.2)
    started = time.monotonic()
    log_steps(tracker, 0, 50)
    tracker.flush()
    assert time.monotonic() - started < 5
    assert store.points == []
    store.hang.set()
    tracker._patience = 20.0
    tracker.close()
    assert store.points == losses(0, 50)


def test_what_the_store_calls_invalid_holds_up_nothing_else(store, tmp_path, caplog, monkeypatch):
    def log_batch(run_id, metrics=(), tags=()):
        if tags:
            raise MlflowException("tag too long", error_code=INVALID_PARAMETER_VALUE)
        store.points += [(m.key, m.step, m.value) for m in metrics]

    monkeypatch.setattr(store, "log_batch", log_batch)
    tracker = open_run(tmp_path)
    log_steps(tracker, 0, 3)
    tracker.set_tags({"split": "val"})
    tracker.close()
    assert (store.points, store.status) == (losses(0, 3), "FINISHED")
    assert caplog.text.count("the store refuses tags: ") == 1
    assert "tag too long" in caplog.text


def test_a_failing_file_holds_up_neither_numbers_nor_tags_nor_status(store, tmp_path, caplog):
    store.no_artifacts = True
    tracker = open_run(tmp_path, patience=0.3)
    log_steps(tracker, 0, 5)
    tracker.log_table([{"a": 1}], "t")
    tracker.set_tags({"split": "val"})
    tracker.close()
    assert (store.points, store.tags, store.status) == (losses(0, 5), {"split": "val"}, "FINISHED")
    assert "no artifact store" in caplog.text


def test_a_file_that_changes_is_sent_again_and_a_lost_one_left_out(store, tmp_path):
    tracker = open_run(tmp_path)
    for name in ("report.json", "gone.png"):
        (tmp_path / name).write_text("1")
        tracker.log_artifact(tmp_path / name, "files")
    (tmp_path / "gone.png").unlink()
    tracker.flush()
    tracker.flush()
    assert store.files == ["files/report.json"]
    time.sleep(0.01)
    (tmp_path / "report.json").write_text("2")
    tracker.close()
    assert store.files == ["files/report.json"] * 2


def test_what_a_disk_refuses_to_the_end_still_arrives(store, tmp_path):
    def refuse(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    tracker = open_run(tmp_path)
    log_steps(tracker, 0, 3)
    tracker._file = SimpleNamespace(write=refuse, fileno=tracker._file.fileno, close=tracker._file.close)
    log_steps(tracker, 3, 6)
    tracker.close()
    assert store.points == losses(0, 6)
