"""Checkpoints: exact restore, atomic writing, verification, pruning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cosa_dist.assignment.mixture import count_activations
from cosa_dist.config.loading import build_config
from cosa_dist.training.checkpoint import load_networks, restore, restore_newest, save_checkpoint
from cosa_dist.training.checkpoint_files import (
    CheckpointError,
    Score,
    best_checkpoint,
    checkpoints,
    find_checkpoint,
    read_checkpoint,
)
from cosa_dist.training.state import TrainState, build_state

SMALL = {
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "weights": "none",
        "aux_layer": -2,
        "decoder_channels": 16,
        "backbone_options": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    },
    "losses": {"warmup_steps": 1},
    "optimizer": {"warmup_steps": 1},
    "training": {"steps": 9, "global_batch_size": 2},
}


def small_state(seed: int = 0) -> TrainState:
    return build_state(build_config({**SMALL, "seed": seed}), 3, torch.device("cpu"))


def trained(state: TrainState, steps: int = 1) -> TrainState:
    """Advance a state with arbitrary but repeatable gradients."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for parameter in state.online.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()
        state.step += 1
    return state


def equal(one: TrainState, other: TrainState) -> bool:
    pairs = zip(one.online.state_dict().values(), other.online.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def contents(path: Path) -> dict[str, str]:
    """Digests of a checkpoint's files."""
    return {name: facts["sha256"] for name, facts in read_checkpoint(path)["files"].items()}


def test_a_restored_state_goes_on_bit_for_bit(tmp_path):
    straight = trained(small_state(), 5)
    path = save_checkpoint(trained(small_state(), 3), tmp_path, keep=2)
    resumed = small_state(seed=1)
    restore(resumed, path)
    assert resumed.step == 3
    assert not equal(straight, resumed)
    assert equal(straight, trained(resumed, 2))


def learning_state(**threshold: object) -> TrainState:
    assignment = {"threshold": {"kind": "two_components", "queue": 3, **threshold}}
    return build_state(build_config({**SMALL, "assignment": assignment}), 3, torch.device("cpu"))


def test_searched_thresholds_are_part_of_the_checkpoint(tmp_path):
    state = learning_state()
    values = torch.cat([torch.full((300,), 0.2), torch.full((200,), 0.8)])
    counts = count_activations(values, values > 0)
    state.thresholds.update(torch.stack([counts, counts]))
    path = save_checkpoint(state, tmp_path, keep=1)
    resumed = learning_state()
    restore(resumed, path)
    found = resumed.thresholds.current().values()
    assert found == state.thresholds.current().values()
    assert found["threshold"] != learning_state().thresholds.current().values()["threshold"]
    with pytest.raises(CheckpointError, match="settings the run was started with"):
        restore(learning_state(queue=4), path)
    with pytest.raises(CheckpointError, match="fixed thresholds have no state"):
        restore(small_state(), path)
    without = save_checkpoint(small_state(), tmp_path / "fixed", keep=1)
    assert not (without / "thresholds.safetensors").exists()
    with pytest.raises(CheckpointError, match="settings the run was started with"):
        restore(learning_state(), without)


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path):
    state = small_state()
    for step in range(1, 6):
        state.step = step
        save_checkpoint(state, tmp_path, keep=2, best=Score(50.0) if step == 2 else None)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-00000002",
        "step-00000004",
        "step-00000005",
    ]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_a_broken_newest_checkpoint_is_passed_over(tmp_path, caplog):
    save_checkpoint(trained(small_state(), 1), tmp_path, keep=3)
    newest = save_checkpoint(trained(small_state(), 2), tmp_path, keep=3)
    weights = newest / "online.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    state = small_state()
    assert restore_newest(state, tmp_path) == tmp_path / "step-00000001"
    assert state.step == 1
    assert "has changed since it was written" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "missing", "format", "json"])
def test_damage_is_named(tmp_path, damage):
    path = save_checkpoint(small_state(), tmp_path, keep=1)
    file = path / ("optimizer.pt" if damage in ("cut", "missing") else "state.json")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "missing":
        file.unlink()
    elif damage == "format":
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    else:
        file.write_text("{")
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


def test_nothing_half_written_remains_when_the_disk_refuses(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(small_state(), tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_all_checkpoints_broken_is_an_error_and_none_is_not(tmp_path):
    assert restore_newest(small_state(), tmp_path) is None
    path = save_checkpoint(small_state(), tmp_path, keep=1)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        restore_newest(small_state(), tmp_path)


def test_networks_load_for_evaluation_without_the_start_weights(tmp_path):
    state = trained(small_state(), 2)
    gone = {"weights": "/gone/w.pth", "normalisation": "imagenet"}
    state.config = build_config({**SMALL, "model": {**SMALL["model"], **gone}})
    save_checkpoint(state, tmp_path / "checkpoints", keep=1, best=Score(50.0, "assignment", 7))
    _, networks = load_networks(tmp_path, "best", torch.device("cpu"))
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(
        networks["online"](images).segmentation, state.online.eval()(images).segmentation
    )
    with pytest.raises(CheckpointError, match="step-00000002"):
        find_checkpoint(tmp_path, "7")
