"""A run's state to a checkpoint and back: written whole or not at all, verified on load.

Weights are safetensors, the optimiser a pickle restricted to tensors and plain values, the rest JSON.
Nothing in a checkpoint executes code when it is read. A broken newest checkpoint is passed over with a
warning in favour of the one before; one of another format or another configuration is an error.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from cosa_dist.collective import world_size
from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.model.assignment_network import copy_network
from cosa_dist.model.weight_file import save_pickle, save_tensors
from cosa_dist.training.checkpoint_files import (
    BrokenCheckpointError,
    CheckpointError,
    Score,
    best_checkpoint,
    checkpoint_name,
    checkpoints,
    clear_leftovers,
    find_checkpoint,
    is_whole,
    new_checkpoint,
    note_best,
    prune,
    read_checkpoint,
    seal,
)
from cosa_dist.training.networks import build_trained_network, classes_of, network_names
from cosa_dist.training.state import TrainState

__all__ = [
    "BrokenCheckpointError",
    "CheckpointError",
    "Score",
    "best_checkpoint",
    "checkpoint_name",
    "checkpoints",
    "find_checkpoint",
    "load_networks",
    "read_checkpoint",
    "restore",
    "restore_newest",
    "save_checkpoint",
]

THRESHOLDS = "thresholds.safetensors"
"""only there if the thresholds have a state"""
log = logging.getLogger(__name__)


def save_checkpoint(state: TrainState, folder: Path, keep: int, best: Score | None = None) -> Path:
    """Write the state below `folder` and return the checkpoint's path.

    Keeps the newest `keep` checkpoints; with `best`, the score that makes it so, this one is also noted in
    `best.json` and kept.

    Raises:
        OSError: the disk refused; no half-written checkpoint remains, and none is deleted.
    """
    target = folder / checkpoint_name(state.step)
    # The last step is saved before its evaluation too.
    if not is_whole(target):
        _write_checkpoint(state, folder, best)
    if best:
        note_best(folder, target.name, best)
    prune(folder, keep)
    return target


def _write_checkpoint(state: TrainState, folder: Path, best: Score | None) -> None:
    with new_checkpoint(folder, state.step) as working:
        save_tensors(state.online.state_dict(), working / "online.safetensors")
        save_tensors(state.assignment.state_dict(), working / "assignment.safetensors")
        save_pickle(state.optimizer.state_dict(), working / "optimizer.pt")
        thresholds = state.thresholds.state_dict()
        if thresholds:
            save_tensors(thresholds, working / THRESHOLDS)
        content = {"config": state.config.model_dump(mode="json"), "workers": world_size()}
        seal(working, {**state.position(), **content, "best": asdict(best) if best else False})


def restore(state: TrainState, path: Path) -> None:
    """Put a verified checkpoint into `state` (in place).

    Raises:
        BrokenCheckpointError: damaged.
        CheckpointError: made by a run with another network or other thresholds.
    """
    _restore(state, path, read_checkpoint(path))


def _restore(state: TrainState, path: Path, content: dict[str, Any]) -> None:
    device = next(state.online.parameters()).device
    try:
        state.online.load_state_dict(load_file(path / "online.safetensors", device=str(device)))
        state.assignment.load_state_dict(load_file(path / "assignment.safetensors", device=str(device)))
        optimizer = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
        state.optimizer.load_state_dict(optimizer)
        thresholds = load_file(path / THRESHOLDS) if THRESHOLDS in content["files"] else {}
        state.thresholds.load_state_dict(thresholds)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit this configuration: {reason}") from None
    state.step = content["step"]
    state.best_score = content["best_score"]
    state.seconds = content["seconds"]
    workers = content.get("workers", world_size())
    if state.config.data.reading == "streaming" and workers != world_size():
        log.warning(
            "%s was written with %d workers, there are %d now: streaming deals the samples of this epoch "
            "out anew (data.reading mapped would not)",
            path.name,
            workers,
            world_size(),
        )


def restore_newest(state: TrainState, folder: Path) -> Path | None:
    """Restore the newest whole checkpoint below `folder`; None if there is none.

    To be called by one process only: it clears away what killed ones left, and notes the restored
    checkpoint as the best again if a kill came between its writing and that note.

    Raises:
        CheckpointError: checkpoints are there, but none can be used; or the newest whole one is of another
            format or configuration.
    """
    clear_leftovers(folder)
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            content = read_checkpoint(path)
        except BrokenCheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            continue
        _restore(state, path, content)
        if content.get("best"):
            note_best(folder, path.name, Score.read(content["best"]))
        return path
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} can be used")
    return None


def load_networks(run: Path, which: str, device: torch.device) -> tuple[RunConfig, dict[str, nn.Module]]:
    """Load both networks of a run's checkpoint for evaluation or prediction.

    Returns:
        The run's configuration, and the networks `online` and `assignment` (of a segmenter: `average`) in
        evaluation mode.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    path = find_checkpoint(run, which)
    content = read_checkpoint(path)
    config = build_config(content["config"], str(path))
    online = load_file(path / "online.safetensors", device=str(device))
    # The checkpoint holds all weights: those that training started from need not be there any more.
    bare = config.model.model_copy(update={"weights": "none"})
    built = build_trained_network(config.model_copy(update={"model": bare}), classes_of(online))
    network = built.to(device).eval()
    network.load_state_dict(online)
    assignment = copy_network(network)
    assignment.load_state_dict(load_file(path / "assignment.safetensors", device=str(device)))
    return config, dict(zip(network_names(config), (network, assignment), strict=True))
