"""A real MLflow server that dies in the middle of a run and comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosa_dist.tracking.local_tracker import LocalTracker
from cosa_dist.tracking.mlflow_client import connect
from cosa_dist.tracking.mlflow_tracker import MlflowTracker, create_run, replay
from cosa_dist.tracking.store import StoreError, check_server, prepare_store
from cosa_dist.tracking.tracker import CombinedTracker

Start = Callable[[], subprocess.Popen]


def wait_for(uri: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return check_server(uri, 1.0)
        except StoreError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.2)


def stop(server: subprocess.Popen) -> None:
    """Kill the server and its workers, all in one process group of their own."""
    if server.poll() is None:
        os.killpg(server.pid, 9)
        server.wait(30)


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[tuple[str, Start]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        with (tmp_path / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
        started.append(process)
        wait_for(uri, process)
        return process

    yield uri, start
    for process in started:
        stop(process)


@pytest.mark.integration
def test_every_metric_is_there_exactly_once_after_an_outage(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, start = server
    process = start()
    assert prepare_store(uri, tmp_path) == uri
    run_id = create_run(uri, "outage", "run", tags={"kind": "cosa"}, params={"seed": "1"})
    mlflow = MlflowTracker(uri, run_id, batch=20, seconds=0.2, patience=1.0)
    local = LocalTracker(tmp_path / "run", run_id)
    tracker = CombinedTracker([local, mlflow])

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            tracker.log_metrics({"loss": 1 / (step + 1), "lr": step * 1e-6}, step)

    train(0, 50)
    tracker.flush()
    assert mlflow.undelivered == 0
    stop(process)
    train(50, 120)
    tracker.set_tags({"split": "val"})
    tracker.log_table([{"class": "cat", "iou": 0.5}], "classes")
    tracker.close("FINISHED")
    assert mlflow.undelivered >= 140

    start()
    assert replay(local.path, uri, run_id) == 140
    assert replay(local.path, uri, run_id) == 0
    client = connect(uri)
    for key, value in (("loss", lambda s: 1 / (s + 1)), ("lr", lambda s: s * 1e-6)):
        points = sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
        assert points == [(step, value(step)) for step in range(120)]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["split"]) == ("FINISHED", "val")
    assert [item.path for item in client.list_artifacts(run_id, "tables")] == ["tables/classes.json"]


@pytest.mark.integration
def test_training_goes_on_and_the_buffer_is_sent_when_the_server_is_back(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, start = server
    process = start()
    run_id = create_run(uri, "outage", "short")
    tracker = MlflowTracker(uri, run_id, seconds=0.2, longest_pause=0.5, patience=20.0)
    tracker.log_metrics({"loss": 0.0}, 0)
    tracker.flush()
    stop(process)
    for step in range(1, 2500):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.flush()
    assert tracker.undelivered == 2499
    start()
    tracker.close("FINISHED")
    assert tracker.undelivered == 0
    client = connect(uri)
    steps = sorted(metric.step for metric in client.get_metric_history(run_id, "loss"))
    assert steps == list(range(2500))
    assert client.get_run(run_id).info.status == "FINISHED"
