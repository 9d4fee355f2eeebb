"""Checkpoints on a disk that fills up: training goes on, and stops when nothing helps."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cosa_dist.training import checkpoint
from cosa_dist.training.checkpoint import CheckpointWriter, restore_newest
from cosa_dist.training.checkpoint_files import Score, best_checkpoint, checkpoints
from cosa_dist.training.window import NonFiniteLossError
from tests.training.test_checkpoint import equal, small_state, trained


class Disk:
    """Writes as long as there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.write = checkpoint.save_tensors
        monkeypatch.setattr(checkpoint, "save_tensors", self)

    def __call__(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.write(tensors, path)
        if self.full:
            # Part of the file is there when the disk is full.
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system refuses to let files grow larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_costs_checkpoints_and_no_run(tmp_path, disk, caplog):
    writer, state = CheckpointWriter(tmp_path, keep=2), small_state()
    writer.save(trained(state), required=False, score=Score(10.0))
    before = names(tmp_path)
    disk.full = True
    with caplog.at_level(logging.WARNING):
        writer.save(trained(state), required=False)
        writer.save(trained(state), required=False, score=Score(20.0))
    assert caplog.text.count("No space left on device") == 2
    assert "the checkpoint of step 2 cannot be written" in caplog.text
    assert names(tmp_path) == before == ["best.json", "step-00000001"]
    disk.full = False
    writer.save(trained(state), required=False, score=Score(15.0))
    # The checkpoint with 20 was lost, so 15 is the best that can be loaded.
    assert best_checkpoint(tmp_path).name == "step-00000004"
    resumed = small_state(seed=1)
    restore_newest(resumed, tmp_path)
    assert equal(resumed, state)
    assert (resumed.step, resumed.best_score) == (4, 15.0)


@pytest.mark.parametrize("optimizer_only", [False, True])
def test_what_the_libraries_say_of_a_full_disk_is_no_traceback(tmp_path, caplog, monkeypatch, optimizer_only):
    writer, state = CheckpointWriter(tmp_path, keep=2), trained(small_state())
    if optimizer_only:
        monkeypatch.setattr(checkpoint, "save_tensors", lambda tensors, path: path.touch())
    with files_of_at_most(10_000):
        writer.save(state, required=False)
    file = "optimizer.pt" if optimizer_only else "online.safetensors"
    assert f"step 1 cannot be written, those before it stay: {file} cannot be written" in caplog.text
    assert names(tmp_path) == []
    monkeypatch.undo()
    writer.save(state, required=True)
    assert names(tmp_path) == ["step-00000001"]


def test_three_failures_in_a_row_end_the_run_and_one_success_forgives(tmp_path, disk):
    writer, state = CheckpointWriter(tmp_path, keep=2), small_state()
    disk.full = True
    for _ in range(2):
        writer.save(trained(state), required=False)
    disk.full = False
    writer.save(trained(state), required=False)
    disk.full = True
    for _ in range(2):
        writer.save(trained(state), required=False)
    with pytest.raises(OSError, match="No space left"):
        writer.save(trained(state), required=False)
    assert names(tmp_path) == ["step-00000003"]


def test_the_last_checkpoint_must_be_written(tmp_path, disk):
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        CheckpointWriter(tmp_path, keep=2).save(small_state(), required=True, score=Score(1.0))


def test_poisoned_weights_do_not_become_the_newest_checkpoint(tmp_path):
    writer, state = CheckpointWriter(tmp_path, keep=1), small_state()
    writer.save(trained(state), required=False)
    with torch.no_grad():
        state.online.classifier.weight[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 1: weights of classifier"):
        writer.save(state, required=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
