"""Checkpoints on a disk that fills up: training goes on, and stops when nothing helps."""

from __future__ import annotations

import logging
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.assignment.mixture import BINS
from cosa_dist.training import checkpoint
from cosa_dist.training.checkpoint import CheckpointWriter, restore_newest, save_checkpoint
from cosa_dist.training.checkpoint_files import Score, best_checkpoint, checkpoints
from cosa_dist.training.window import NonFiniteLossError
from tests.training.test_checkpoint import contents, equal, learning_state, small_state, trained


class Disk:
    """Writes as long as there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.write = checkpoint.save_tensors
        monkeypatch.setattr(checkpoint, "save_tensors", self)

    def __call__(self, tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        self.write(tensors, path, metadata)
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
    writer.finish()
    before = names(tmp_path)
    disk.full = True
    with caplog.at_level(logging.WARNING):
        writer.save(trained(state), required=False)
        writer.save(trained(state), required=False, score=Score(20.0))
        writer.finish()
    assert caplog.text.count("No space left on device") == 2
    assert "the checkpoint of step 2 cannot be written" in caplog.text
    assert names(tmp_path) == before == ["best.json", "step-00000001"]
    disk.full = False
    writer.save(trained(state), required=False, score=Score(15.0))
    writer.finish()
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
        monkeypatch.setattr(checkpoint, "save_tensors", lambda tensors, path, metadata: path.touch())
    with files_of_at_most(10_000):
        writer.save(state, required=False)
        writer.finish()
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
    writer.finish()
    disk.full = False
    writer.save(trained(state), required=False)
    writer.finish()
    disk.full = True
    for _ in range(3):
        writer.save(trained(state), required=False)
    # What the thread met is known at the next checkpoint.
    with pytest.raises(OSError, match="No space left"):
        writer.save(trained(state), required=False)
    assert names(tmp_path) == ["step-00000003"]


def held_up(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[threading.Event, threading.Event]:
    """Let the background thread wait where it calls `name`: (it has come there, it may go on)."""
    come, go_on = threading.Event(), threading.Event()
    call: Callable[..., object] = getattr(checkpoint, name)

    def waiting(*arguments: object) -> object:
        come.set()
        assert go_on.wait(60)
        return call(*arguments)

    monkeypatch.setattr(checkpoint, name, waiting)
    return come, go_on


def test_training_goes_on_while_the_disk_writes_and_what_is_written_is_the_state_of_the_step(
    tmp_path, monkeypatch
):
    expected = save_checkpoint(trained(small_state(), 2), tmp_path / "at_once", keep=2)
    writer, state = CheckpointWriter(tmp_path / "run", keep=2), small_state()
    writer.save(trained(state), required=True)
    come, go_on = held_up(monkeypatch, "save_tensors")
    with writer:
        writer.save(trained(state), required=False)
        assert come.wait(60)
        trained(state, 3)
        # A machine that is lost now leaves the checkpoint before, whole.
        shutil.copytree(tmp_path / "run", tmp_path / "lost")
        go_on.set()
    resumed = small_state(seed=1)
    assert restore_newest(resumed, tmp_path / "lost") == tmp_path / "lost" / "step-00000001"
    assert equal(trained(resumed, 4), state)
    assert names(tmp_path / "lost") == ["step-00000001"]
    assert contents(tmp_path / "run" / "step-00000002") == contents(expected)


def test_the_optimiser_waits_until_its_state_is_copied(tmp_path, monkeypatch):
    expected = save_checkpoint(trained(small_state(), 2), tmp_path / "at_once", keep=2)
    come, go_on = held_up(monkeypatch, "copy_to_host")
    state = trained(small_state(), 2)
    with CheckpointWriter(tmp_path / "run", keep=2) as writer:
        writer.save(state, required=False)
        assert come.wait(60)
        training = threading.Thread(target=trained, args=(state,))
        training.start()
        training.join(0.2)
        assert state.step == 2
        go_on.set()
        training.join(60)
        assert state.step == 3
    assert contents(tmp_path / "run" / "step-00000002") == contents(expected)


def test_counts_of_batch_norms_and_thresholds_are_copied_at_once(tmp_path, monkeypatch):
    state = learning_state()
    state.online.backbone.register_buffer("seen", torch.zeros(2))
    state.assignment.backbone.register_buffer("seen", torch.zeros(2))
    come, go_on = held_up(monkeypatch, "copy_to_host")
    with CheckpointWriter(tmp_path, keep=2) as writer:
        before = {key: value.clone() for key, value in state.thresholds.state_dict().items()}
        writer.save(state, required=False)
        assert come.wait(60)
        state.online.backbone.seen += 1  # as a forward pass does, before the optimiser's step
        state.thresholds.update(torch.ones(2, BINS, dtype=torch.int64))
        go_on.set()
    saved = load_file(tmp_path / "step-00000000" / "online.safetensors")
    assert torch.equal(saved["backbone.seen"], torch.zeros(2))
    for key, value in load_file(tmp_path / "step-00000000" / "thresholds.safetensors").items():
        assert torch.equal(value, before[key]), key


def test_a_better_score_at_a_step_that_is_saved_is_a_note_and_no_second_writing(tmp_path, disk):
    writer, state = CheckpointWriter(tmp_path, keep=1), small_state()
    writer.save(trained(state), required=True, score=Score(10.0))
    writer.save(trained(state), required=False)
    writer.finish()
    disk.full = True
    writer.save(state, required=True, score=Score(5.0))
    assert best_checkpoint(tmp_path).name == "step-00000001"
    writer.save(state, required=True, score=Score(20.0))
    assert best_checkpoint(tmp_path).name == "step-00000002"
    assert names(tmp_path) == ["best.json", "step-00000002"]


def test_what_breaks_in_the_thread_ends_the_run_but_hides_no_other_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "save_pickle", lambda *words: 1 / 0)

    def run(folder: Path, error: Exception | None) -> None:
        with CheckpointWriter(folder, keep=2) as writer:
            writer.save(trained(small_state()), required=False)
            if error:
                raise error

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "one", None)
    assert caplog.text == ""
    with pytest.raises(KeyError):
        run(tmp_path / "two", KeyError())
    assert "the checkpoint failed, too: ZeroDivisionError: division by zero" in caplog.text
    assert names(tmp_path / "one") == names(tmp_path / "two") == []


def test_the_last_checkpoint_must_be_written(tmp_path, disk):
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        CheckpointWriter(tmp_path, keep=2).save(small_state(), required=True, score=Score(1.0))


def test_poisoned_weights_do_not_become_the_newest_checkpoint(tmp_path):
    writer, state = CheckpointWriter(tmp_path, keep=1), small_state()
    writer.save(trained(state), required=False)
    writer.finish()
    with torch.no_grad():
        state.online.classifier.weight[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 1: weights of classifier"):
        writer.save(state, required=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
