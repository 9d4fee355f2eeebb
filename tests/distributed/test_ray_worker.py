"""Errors that would come again: noted in one line, which the launcher tells."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from cosa_dist import collective
from cosa_dist.distributed import ray_worker, worker
from cosa_dist.distributed.launch import RunFailedError, raise_recorded_failure
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask
from cosa_dist.training.window import NonFiniteLossError
from tests.support.ranks import run_ranks


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Run one of some workers, whose loss is not finite."""

    def not_finite(*words: object, **more: object) -> None:
        raise NonFiniteLossError("step 3: loss is nan,\nnot finite")

    def failing(workers: int) -> None:
        monkeypatch.setattr(worker, "run_worker", not_finite)
        monkeypatch.setattr(collective, "world_size", lambda: workers)
        task = WorkerTask({}, str(tmp_path), "", "", False, 1, 1)
        ray_worker.run_and_record(task, RunFolder(tmp_path))

    return failing


def test_a_lone_worker_returns_and_the_launcher_tells_its_line(fail, tmp_path):
    fail(1)
    with pytest.raises(RunFailedError) as told:
        raise_recorded_failure(RunFolder(tmp_path))
    assert str(told.value) == "NonFiniteLossError: step 3: loss is nan, not finite"


def test_one_of_several_raises_so_that_the_others_do_not_wait_for_it(fail, tmp_path):
    with pytest.raises(NonFiniteLossError):
        fail(2)
    with pytest.raises(RunFailedError, match=r"^NonFiniteLossError: step 3: loss is nan, not finite$"):
        raise_recorded_failure(RunFolder(tmp_path))


def test_a_lone_worker_that_cannot_note_it_raises(fail, tmp_path):
    RunFolder(tmp_path).failure_file.mkdir()
    with pytest.raises(NonFiniteLossError):
        fail(1)


def _start(index: int, folder: str) -> None:
    """A worker that is started again; only the first one's node sees that the run has failed."""
    for name in ray_worker.WORKER_ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ["PYTORCH_ALLOC_CONF"] = "mine"
    trained = Path(folder) / f"trained by {index}"
    ray_worker.run_and_record = lambda task, seen, report: trained.touch()  # type: ignore[assignment]
    ray_worker.ray_worker(asdict(WorkerTask({}, f"{folder}/node{index}", "", "", False, 1, 1)))
    assert os.environ["PYTORCH_ALLOC_CONF"] == "mine"
    assert os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] == "true"


@pytest.mark.parametrize(("left", "workers"), [("failure.txt", 0), ("stopped.txt", 0), ("config.yaml", 2)])
def test_a_failure_that_one_node_sees_ends_all_workers(tmp_path, left, workers):
    for index in range(2):
        (tmp_path / f"node{index}").mkdir()
    (tmp_path / "node0" / left).write_text("it was so\n")
    run_ranks(_start, 2, str(tmp_path))
    assert len(list(tmp_path.glob("trained by *"))) == workers
