"""Errors that would come again: noted in one line, which the launcher tells."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from cosa_dist import collective
from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.distributed import ray_worker, worker
from cosa_dist.distributed.launch import RunFailedError, raise_recorded_failure
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask
from cosa_dist.tracking.tracker import NullTracker
from cosa_dist.training import checkpoint
from cosa_dist.training.loop import TrainingContext, run_training
from cosa_dist.training.state import build_state, make_accelerator, wrap_online
from cosa_dist.training.window import NonFiniteLossError
from tests.benchmark.tiny_run import tiny_config
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


def _asked_to_stop(index: int, folder: str, disk_is_full: bool) -> None:
    """A worker that trains one step and is asked to stop there; rank 0 writes the checkpoint."""

    def full(*words: object, **more: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    def train(*words: object, **more: object) -> None:
        accelerator = make_accelerator("fp32", 2, cpu=True)
        state = build_state(tiny_config(training={"log_every": 1}), 3, accelerator.device)
        network = wrap_online(state, accelerator)
        context = TrainingContext(
            accelerator,
            NullTracker(),
            Path(folder),
            lambda state, last: ({}, {}),
            stop_requested=lambda: True,
        )
        run_training(state, network, [[generated_batch(2, 32, 3)]], context)

    worker.run_worker = train  # type: ignore[assignment]
    if disk_is_full:
        checkpoint.store_checkpoint = full
    try:
        ray_worker.run_and_record(WorkerTask({}, folder, "", "", False, 2, 1), RunFolder(Path(folder)))
    except OSError:
        (Path(folder) / f"refused {index}").touch()


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_a_stop_is_recorded_only_if_rank_0_has_saved(tmp_path, disk_is_full):
    run_ranks(_asked_to_stop, 2, str(tmp_path), disk_is_full)
    refused = [path.name for path in tmp_path.glob("refused *")]
    stopped = RunFolder(tmp_path).stopped_by_user
    if disk_is_full:
        assert (refused, stopped) == (["refused 0"], None)
    else:
        assert (refused, stopped) == ([], "stopped as asked after step 1, which is saved")
        assert RunFolder(tmp_path).has_checkpoint
