"""A run's state to a checkpoint and back: weights are safetensors, the optimiser a pickle, the rest JSON.

The pickle is restricted to tensors and plain values: nothing in a checkpoint executes code when it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from cosa_dist.collective import barrier, rank, world_size
from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.model.network import copy_network
from cosa_dist.model.weight_file import save_pickle, save_tensors
from cosa_dist.training.checkpoint_files import (
    CheckpointError,
    Score,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    store_checkpoint,
)
from cosa_dist.training.state import TrainState, load_network, network_names
from cosa_dist.training.window import check_weights

FAILURES_IN_A_ROW = 3  # so many checkpoints may fail one after the other before the run stops
THRESHOLDS = "thresholds.safetensors"  # only there if the thresholds have a state
log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes a run's checkpoints: rank 0 writes, the others wait; every rank calls it at the same steps.

    A checkpoint that cannot be written is a warning: those before it are whole, training goes on, and the
    next one is due soon. Only where it happens again and again, or at the end of the run, is it an error.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.failures = 0

    def save(self, state: TrainState, *, required: bool, score: Score | None = None) -> None:
        """Write a checkpoint; a better `score`, of an evaluation at this step, makes it the best.

        Raises OSError if the disk refused for the third time in a row, or if the checkpoint is `required`,
        and NonFiniteLossError for weights that are not finite.
        """
        check_weights(state.online, state.step)
        before = state.best_score
        best = score if score is not None and score.miou > before else None
        if best is not None:
            state.best_score = best.miou
        if rank() == 0:
            try:
                save_checkpoint(state, self.folder, self.keep, best)
                self.failures = 0
            except OSError as error:
                # No checkpoint holds the better score, so the next one of that score is the best.
                state.best_score = before
                self._handle_write_error(error, state.step, required)
        barrier()

    def _handle_write_error(self, error: OSError, step: int, required: bool) -> None:
        self.failures += 1
        log.warning("the checkpoint of step %d cannot be written, those before it stay: %s", step, error)
        if required or self.failures >= FAILURES_IN_A_ROW:
            raise error


def save_checkpoint(state: TrainState, folder: Path, keep: int, best: Score | None = None) -> Path:
    """Write the state below `folder` and return the checkpoint's path (see `store_checkpoint`)."""
    content = {
        "step": state.step,
        "best_score": state.best_score,
        "seconds": state.seconds,
        "config": state.config.model_dump(mode="json"),
        "workers": world_size(),
    }

    def write(working: Path) -> None:
        save_tensors(state.online.state_dict(), working / "online.safetensors")
        save_tensors(state.assignment.state_dict(), working / "assignment.safetensors")
        save_pickle(state.optimizer.state_dict(), working / "optimizer.pt")
        if thresholds := state.thresholds.state_dict():
            save_tensors(thresholds, working / THRESHOLDS)

    return store_checkpoint(folder, state.step, content, write, keep=keep, best=best)


def restore(state: TrainState, path: Path, content: Mapping[str, Any] | None = None) -> None:
    """Put a checkpoint into `state`; it is verified, unless its JSON part (`content`) is given.

    Raises BrokenCheckpointError if it is damaged, CheckpointError if the configuration is another.
    """
    content = content or read_checkpoint(path)
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
    state.step, state.best_score = content["step"], content["best_score"]
    state.seconds = content["seconds"]
    workers = content.get("workers", world_size())
    if state.config.data.reading == "streaming" and workers != world_size():
        log.warning(
            f"{path.name} was written with {workers} workers, there are {world_size()} now: streaming deals "
            "the samples of this epoch out anew (data.reading mapped would not)"
        )


def restore_newest(state: TrainState, folder: Path) -> Path | None:
    """Restore the newest whole checkpoint below `folder` (see `newest_checkpoint`); None if there is none."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    restore(state, *newest)
    return newest[0]


def load_networks(run: Path, which: str, device: torch.device) -> tuple[RunConfig, dict[str, nn.Module]]:
    """Load a run's configuration and both networks of a checkpoint, by name and in evaluation mode."""
    path = find_checkpoint(run, which)
    config = build_config(read_checkpoint(path)["config"], str(path))
    network = load_network(config, load_file(path / "online.safetensors", device=str(device)), device)
    average = copy_network(network)
    average.load_state_dict(load_file(path / "assignment.safetensors", device=str(device)))
    return config, dict(zip(network_names(config), (network, average), strict=True))
