"""A real MLflow server that dies in the middle of a run and comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosa_dist.distributed.cluster import free_port
from cosa_dist.tracking.mlflow_runs import connect, create_run
from cosa_dist.tracking.store import prepare_store
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.tracking.upload import replay
from tests.support.mlflow_server import await_mlflow_server, start_mlflow_server

Start = Callable[[], subprocess.Popen]


def stop(server: subprocess.Popen) -> None:
    """Kill the server and its workers, all in one process group of their own."""
    if server.poll() is None:
        os.killpg(server.pid, 9)
        server.wait(30)


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[tuple[str, Start]]:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        started.append(start_mlflow_server(store, port, tmp_path))
        await_mlflow_server(uri)
        return started[-1]

    yield uri, start
    for process in started:
        stop(process)


@pytest.mark.integration
def test_every_metric_is_there_exactly_once_after_an_outage(server, tmp_path, monkeypatch, caplog):
    """One tracker lives through the outage, the other is closed during it and replayed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, start = server
    process = start()
    assert prepare_store(uri, tmp_path) == uri
    ids = [create_run(uri, "outage", name, params={"seed": "1"}) for name in ("closed", "living")]
    closed = Tracker(tmp_path / "closed", uri, ids[0], patience=1.0)
    living = Tracker(tmp_path / "living", uri, ids[1], patience=60.0)

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            closed.log_metrics({"loss": 1 / (step + 1), "lr": step * 1e-6}, step)
            living.log_metrics({"loss": float(step)}, step)

    client = connect(uri)

    def points(run_id: str, key: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))

    train(0, 50)
    assert closed.upload.flush(120) is living.upload.flush(120) is None
    assert len(points(ids[0], "lr")) == len(points(ids[1], "loss")) == 50
    stop(process)
    train(50, 1300)
    living.flush()
    closed.set_tags({"split": "val"})
    closed.log_table([{"class": "cat", "iou": 0.5}], "classes")
    closed.close("FINISHED")
    assert f"run {ids[0]} did not reach {uri} completely" in caplog.text

    start()
    living.close("KILLED")
    assert ids[1] not in caplog.text
    assert replay(closed.folder, uri, ids[0]) == 2500
    assert replay(closed.folder, uri, ids[0]) == 0
    assert points(ids[1], "loss") == [(step, float(step)) for step in range(1300)]
    assert points(ids[0], "loss") == [(step, 1 / (step + 1)) for step in range(1300)]
    assert points(ids[0], "lr") == [(step, step * 1e-6) for step in range(1300)]
    run = client.get_run(ids[0])
    assert (run.info.status, run.data.tags["split"]) == ("FINISHED", "val")
    assert client.get_run(ids[1]).info.status == "KILLED"
    assert [item.path for item in client.list_artifacts(ids[0], "tables")] == ["tables/classes.json"]
