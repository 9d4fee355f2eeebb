"""Errors that would come again: noted in one line, which the launcher tells."""

from __future__ import annotations

import pytest

from cosa_dist import collective
from cosa_dist.distributed import ray_worker, worker
from cosa_dist.distributed.launch import RunFailedError, _heed_notes
from cosa_dist.distributed.task import WorkerTask
from cosa_dist.training.window import NonFiniteLossError


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Run one of some workers, whose loss is not finite."""

    def not_finite(*words: object, **more: object) -> None:
        raise NonFiniteLossError("step 3: loss is nan,\nnot finite")

    def failing(workers: int) -> None:
        monkeypatch.setattr(worker, "run_worker", not_finite)
        monkeypatch.setattr(collective, "world_size", lambda: workers)
        ray_worker._run(WorkerTask({}, str(tmp_path), "", "", False, 1, 1), tmp_path)

    return failing


def test_a_lone_worker_returns_and_the_launcher_tells_its_line(fail, tmp_path):
    fail(1)
    with pytest.raises(RunFailedError) as told:
        _heed_notes(tmp_path)
    assert str(told.value) == "NonFiniteLossError: step 3: loss is nan, not finite"


def test_one_of_several_raises_so_that_the_others_do_not_wait_for_it(fail, tmp_path):
    with pytest.raises(NonFiniteLossError):
        fail(2)
    with pytest.raises(RunFailedError, match=r"^NonFiniteLossError: step 3: loss is nan, not finite$"):
        _heed_notes(tmp_path)


def test_a_lone_worker_that_cannot_note_it_raises(fail, tmp_path):
    (tmp_path / ray_worker.FAILURE).mkdir()
    with pytest.raises(NonFiniteLossError):
        fail(1)
