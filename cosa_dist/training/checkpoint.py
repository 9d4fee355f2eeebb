"""Step-numbered checkpoints: written to a temporary folder, renamed, verified on load.

Weights are safetensors, the optimiser a pickle restricted to tensors and plain values, the rest JSON with
the size and SHA-256 of each file. Nothing in a checkpoint executes code when it is read. A broken newest
checkpoint is passed over with a warning in favour of the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.model.assignment_network import copy_network
from cosa_dist.model.network import build_network
from cosa_dist.training.state import TrainState

FORMAT = 1
PREFIX = "step-"
THRESHOLDS = "thresholds.safetensors"
"""only there if the thresholds have a state"""
log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file and why."""


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save_weights(network: nn.Module, path: Path) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, path)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` finished steps."""
    return f"{PREFIX}{step:08d}"


def save_checkpoint(state: TrainState, folder: Path, keep: int, best: bool = False) -> Path:
    """Write the state below `folder` and return the checkpoint's path.

    Keeps the newest `keep` checkpoints; with `best`, this one is also noted in `best.json` and kept.

    Raises:
        OSError: the disk refused; no half-written checkpoint remains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / checkpoint_name(state.step)
    working = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir()
        _save_weights(state.online, working / "online.safetensors")
        _save_weights(state.assignment, working / "assignment.safetensors")
        torch.save(state.optimizer.state_dict(), working / "optimizer.pt")
        thresholds = state.thresholds.state_dict()
        if thresholds:
            save_file({k: v.cpu().contiguous() for k, v in thresholds.items()}, working / THRESHOLDS)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
            for path in sorted(working.iterdir())
        }
        content = {
            "format": FORMAT,
            **state.position(),
            "config": state.config.model_dump(mode="json"),
            "files": files,
        }
        (working / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        working.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    if best:
        _note_best(folder, target.name)
    _prune(folder, keep)
    return target


def _note_best(folder: Path, name: str) -> None:
    temporary = folder / ".best.json.tmp"
    temporary.write_text(json.dumps({"checkpoint": name}), encoding="utf-8")
    temporary.replace(folder / "best.json")


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint below `folder`, if one was noted and is still there."""
    note = folder / "best.json"
    if not note.is_file():
        return None
    path = folder / str(json.loads(note.read_text(encoding="utf-8"))["checkpoint"])
    return path if path.is_dir() else None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _prune(folder: Path, keep: int) -> None:
    best = best_checkpoint(folder)
    for path in checkpoints(folder)[:-keep]:
        if path != best:
            shutil.rmtree(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint's JSON part and files.

    Raises:
        CheckpointError: a missing or changed file, or another format.
    """
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: state.json cannot be read ({error})") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {content.get('format')}, this version reads {FORMAT}"
        )
    for name, facts in content["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise CheckpointError(f"{path}: {name} is missing or has another size than written")
        if _digest(file) != facts["sha256"]:
            raise CheckpointError(f"{path}: {name} has changed since it was written")
    return content


def restore(state: TrainState, path: Path) -> None:
    """Put a verified checkpoint into `state` (in place).

    Raises:
        CheckpointError: damaged, or made by a run with another network or other thresholds.
    """
    content = read_checkpoint(path)
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


def restore_newest(state: TrainState, folder: Path) -> Path | None:
    """Restore the newest whole checkpoint below `folder`; None if there is none.

    Raises:
        CheckpointError: checkpoints are there, but none can be used.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            restore(state, path)
            return path
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} can be used")
    return None


def find_checkpoint(run: Path, which: str) -> Path:
    """Path of a run's checkpoint.

    Args:
        run: the run folder.
        which: `newest`, `best` or a step number.

    Raises:
        CheckpointError: there is no such checkpoint; the message lists those there.
    """
    folder = run / "checkpoints"
    found = checkpoints(folder) if folder.is_dir() else []
    wanted: Path | None = None
    if which == "newest":
        wanted = found[-1] if found else None
    elif which == "best":
        wanted = best_checkpoint(folder)
    elif which.isdigit():
        wanted = folder / checkpoint_name(int(which))
    if wanted is None or wanted not in found:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"no checkpoint {which!r} in {folder}; there are: {names}")
    return wanted


def load_networks(run: Path, which: str, device: torch.device) -> tuple[RunConfig, dict[str, nn.Module]]:
    """Load both networks of a run's checkpoint for evaluation or prediction.

    Returns:
        The run's configuration, and the networks `online` and `assignment` in evaluation mode.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    path = find_checkpoint(run, which)
    content = read_checkpoint(path)
    config = build_config(content["config"], str(path))
    online = load_file(path / "online.safetensors", device=str(device))
    classes = len(online["classifier.weight"])
    # The checkpoint holds all weights: those that training started from need not be there any more.
    bare = config.model.model_copy(update={"weights": "none"})
    network = build_network(bare, classes, config.seed).to(device).eval()
    network.load_state_dict(online)
    assignment = copy_network(network)
    assignment.load_state_dict(load_file(path / "assignment.safetensors", device=str(device)))
    return config, {"online": network, "assignment": assignment}
