"""Errors that would come again: noted in one line, which the launcher tells."""

from __future__ import annotations

import pytest

from cosa_dist import collective
from cosa_dist.distributed import ray_worker, worker
from cosa_dist.distributed.launch import RunFailedError, raise_recorded_failure
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask
from cosa_dist.training.window import NonFiniteLossError


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
