"""The folder of checkpoints after kills at awkward moments."""

from __future__ import annotations

import json
import logging

import pytest

from cosa_dist.training.checkpoint import restore_newest, save_checkpoint
from cosa_dist.training.checkpoint_files import (
    BrokenCheckpointError,
    CheckpointError,
    Score,
    best_checkpoint,
    best_score,
    checkpoints,
    new_checkpoint,
    read_checkpoint,
    remove_half_written,
)
from tests.training.test_checkpoint import small_state, trained


def test_a_kill_between_the_checkpoint_and_the_note_of_the_best_is_made_good(tmp_path):
    state = trained(small_state())
    save_checkpoint(state, tmp_path, keep=2, best=Score(50.0, "assignment", 7))
    (tmp_path / "best.json").unlink()
    restore_newest(small_state(), tmp_path)
    assert best_checkpoint(tmp_path).name == "step-00000001"


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"checkpoint": ""}', '{"checkpoint": 4}'])
def test_a_damaged_note_of_the_best_is_named(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged; name a checkpoint"):
        best_checkpoint(tmp_path)


def test_the_score_of_a_best_checkpoint_counts_only_where_it_can(tmp_path):
    note = {"checkpoint": "step-00000001", "score": {"miou": 5, "network": "online", "images": 7}}
    (tmp_path / "best.json").write_text(json.dumps(note))
    assert best_score(tmp_path) is None
    (tmp_path / "step-00000001").mkdir()
    assert best_score(tmp_path) == Score(5, "online", 7)
    (tmp_path / "best.json").write_text(json.dumps({**note, "score": {"miou": None}}))
    assert best_score(tmp_path) is None


def test_who_still_writes_cannot_publish_what_is_being_removed(tmp_path):
    def write() -> None:
        with new_checkpoint(tmp_path, 3, {"step": 3}) as working:
            (working / "online.safetensors").write_bytes(b"half")
            remove_half_written(tmp_path)

    with pytest.raises(OSError):
        write()
    assert list(tmp_path.iterdir()) == []
    with new_checkpoint(tmp_path, 4, {"step": 4}) as working:
        (working / "online.safetensors").write_bytes(b"whole")
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_what_killed_processes_left_half_written_is_cleared_away(tmp_path):
    save_checkpoint(trained(small_state()), tmp_path, keep=2)
    left = tmp_path / ".step-00000002.4711.tmp"
    left.mkdir()
    (left / "online.safetensors").write_bytes(b"half")
    restore_newest(small_state(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_whole_checkpoint_is_never_away_while_its_step_is_saved_again(tmp_path):
    state = trained(small_state())
    path = save_checkpoint(state, tmp_path, keep=2)
    before = (path / "online.safetensors").stat().st_ino
    save_checkpoint(state, tmp_path, keep=2)
    assert (path / "online.safetensors").stat().st_ino == before
    (path / "optimizer.pt").write_bytes(b"broken")
    save_checkpoint(state, tmp_path, keep=2)
    assert read_checkpoint(path)["step"] == 1


def test_a_crash_while_writing_leaves_nothing(tmp_path):
    def write() -> None:
        with new_checkpoint(tmp_path, 3, {}) as working:
            (working / "online.safetensors").write_bytes(b"half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_changed_number_in_the_json_part_is_found(tmp_path):
    path = save_checkpoint(trained(small_state()), tmp_path, keep=1)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, "step": 7}))
    with pytest.raises(BrokenCheckpointError, match=r"state\.json has changed"):
        read_checkpoint(path)
    # Those of the first days carry no digest and are still read.
    (path / "state.json").write_text(json.dumps({k: v for k, v in content.items() if k != "digest"}))
    assert read_checkpoint(path)["step"] == 1


@pytest.mark.parametrize("text", ["[]", "{}", '"text"'])
def test_another_json_file_is_no_checkpoint(tmp_path, text):
    path = save_checkpoint(small_state(), tmp_path, keep=1)
    (path / "state.json").write_text(text)
    with pytest.raises(BrokenCheckpointError, match="not that of a checkpoint"):
        read_checkpoint(path)


def test_an_old_format_is_refused_and_not_passed_over(tmp_path):
    save_checkpoint(trained(small_state()), tmp_path, keep=2)
    newest = save_checkpoint(trained(small_state(), 2), tmp_path, keep=2)
    content = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**content, "format": 0}))
    with pytest.raises(CheckpointError, match="checkpoint format 0, this version reads 1; finish the run"):
        restore_newest(small_state(), tmp_path)
    assert len(checkpoints(tmp_path)) == 2


def test_streaming_on_another_number_of_workers_is_a_warning(tmp_path, caplog):
    path = save_checkpoint(trained(small_state()), tmp_path, keep=1)
    content = json.loads((path / "state.json").read_text())
    assert content["workers"] == 1
    del content["digest"]
    (path / "state.json").write_text(json.dumps({**content, "workers": 4}))
    state = small_state()
    with caplog.at_level(logging.WARNING):
        restore_newest(state, tmp_path)
        assert caplog.text == ""
        data = state.config.data.model_copy(update={"reading": "streaming"})
        state.config = state.config.model_copy(update={"data": data})
        restore_newest(state, tmp_path)
    assert "written with 4 workers, there are 1 now" in caplog.text
