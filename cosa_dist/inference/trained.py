"""A trained network with all that is needed to use it: from a run folder, or from an exported one.

Class names come from the run's reports, so that the shards it was trained on need not be there any more.
Nothing in either folder executes code when it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cosa_dist.config.errors import nearest
from cosa_dist.config.loading import build_config, read_yaml
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.description import describe_split
from cosa_dist.data.errors import DataError
from cosa_dist.training.checkpoint import find_checkpoint, load_networks
from cosa_dist.training.checkpoint_files import best_checkpoint
from cosa_dist.training.networks import build_trained_network, classes_of

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CLASSES = "class_names.txt"


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, its configuration and classes, and where it came from."""

    network: nn.Module
    config: RunConfig
    class_names: tuple[str, ...]
    """the C foreground classes in id order"""
    name: str
    """of the run"""
    checkpoint: str
    """name of the checkpoint, or of the exported file"""
    which: str
    """which network of the run: online, assignment or average"""


def load_trained(folder: Path, checkpoint: str, which: str, device: torch.device) -> TrainedModel:
    """Load a network from a run folder, or from a folder that jobs/export.py wrote.

    Args:
        folder: run folder, or exported folder.
        checkpoint: `best`, `newest` or a step number; empty for the best or, without one, the newest.
        which: name of one of the run's networks; empty for the trained one.
        device: where the network goes.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
        ValueError: no trained network in that folder, or none of that name.
    """
    if (folder / WEIGHTS).is_file():
        return _load_exported(folder, device)
    if not (folder / "checkpoints").is_dir():
        raise ValueError(
            f"{folder} holds no trained network; give a run folder (outputs/runs/NAME, with checkpoints) "
            f"or a folder that jobs/export.py wrote (with {WEIGHTS})"
        )
    if not checkpoint:
        checkpoint = "best" if best_checkpoint(folder / "checkpoints") else "newest"
    config, networks = load_networks(folder, checkpoint, device)
    chosen = which or next(iter(networks))
    if chosen not in networks:
        raise ValueError(
            f"no network {chosen!r} in {folder}; there are {', '.join(networks)}{nearest(chosen, networks)}"
        )
    network = networks[chosen]
    names = class_names_of_run(folder, config, classes_of(dict(network.state_dict())))
    found = find_checkpoint(folder, checkpoint).name
    return TrainedModel(network, config, names, folder.resolve().name, found, chosen)


def class_names_of_run(folder: Path, config: RunConfig, classes: int) -> tuple[str, ...]:
    """Names of a run's `classes` foreground classes: from its reports, else from its shards.

    Raises:
        DataError: neither is there, or they are of another number of classes.
    """
    names = _reported_names(folder)
    if names is None:
        try:
            names = describe_split(config.data.shards, config.data.val_split).info.class_names
        except (DataError, OSError) as error:
            raise DataError(
                f"{folder} does not say its class names: it has no report yet, and its shards cannot be "
                f"read ({error}); run jobs/evaluate.py, or give the shards back their place"
            ) from None
    if len(names) != classes:
        raise DataError(f"{folder}: {len(names)} class names, but the network has {classes} classes")
    return names


def _reported_names(folder: Path) -> tuple[str, ...] | None:
    for path in sorted(folder.glob("report_*.json")):
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["class_names"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _load_exported(folder: Path, device: torch.device) -> TrainedModel:
    config = build_config(read_yaml(folder / CONFIG), str(folder / CONFIG))
    try:
        state = load_file(folder / WEIGHTS, device=str(device))
        names = tuple((folder / CLASSES).read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        bare = config.model.model_copy(update={"weights": "none"})
        network = build_trained_network(config.model_copy(update={"model": bare}), classes_of(state))
        network = network.to(device).eval()
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} is no whole export ({reason}); export again") from None
    if len(names) != classes_of(state):
        raise ValueError(
            f"{folder / CLASSES} names {len(names)} classes, not {classes_of(state)}; export again"
        )
    return TrainedModel(network, config, names, config.name or folder.resolve().name, WEIGHTS, "online")
