"""A trained network with all that is needed to use it: from a run folder, or from an exported one.

Class names come from the run's reports, so that the shards it was trained on need not be there any more.
Nothing in either folder executes code when it is read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from cosa_dist.config.errors import nearest
from cosa_dist.config.loading import read_yaml, stored_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.split import describe_split
from cosa_dist.evaluation.report import EvalReport, better_report, read_reports
from cosa_dist.model.weights import stored_colours
from cosa_dist.training.checkpoint import load_networks
from cosa_dist.training.checkpoint_files import best_checkpoint, best_score, find_checkpoint
from cosa_dist.training.state import classes_of, load_network

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CLASSES = "class_names.txt"


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, its configuration and classes, and where it came from."""

    network: nn.Module
    config: RunConfig
    class_names: tuple[str, ...]  # the C foreground classes in id order
    name: str  # of the run
    checkpoint: str  # name of the checkpoint, or of the exported file
    which: str  # which network of the run: online, assignment or average
    source: str  # checkpoint, network and why these, in words


@dataclass(frozen=True)
class Chosen:
    """A checkpoint and a network of a run, and why these."""

    checkpoint: Path
    network: str
    reason: str

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return int(self.checkpoint.name.rpartition("-")[2])

    @property
    def weights(self) -> Path:
        """The network's file; a segmenter's moving average lies where a CoSA's does."""
        return self.checkpoint / f"{'online' if self.network == 'online' else 'assignment'}.safetensors"

    @property
    def encoder(self) -> Path:
        """The file with the network's encoder; a frozen one is stored with the online network alone."""
        with safe_open(self.weights, framework="pt") as file:
            own = any(name.startswith("backbone.") for name in file.keys())  # noqa: SIM118  # no mapping
        return self.weights if own else self.checkpoint / "online.safetensors"

    def __str__(self) -> str:
        return f"network {self.network} of step {self.step} ({self.reason})"


def device_named(text: str) -> torch.device:
    """The device that `--device` names: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise ValueError(f"--device {text}: give auto, cpu, cuda or cuda:1")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {text}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def choose(run: Path, checkpoint: str = "", network: str = "") -> Chosen:
    """Choose what every job uses of a run folder; the checkpoint is `best`, `newest` or a step number.

    Without a checkpoint asked for it is the best one, or the newest if no evaluation had a score. Without a
    network it is the one of the higher unfiltered mIoU when the best checkpoint was evaluated (in folders of
    earlier versions, which do not say, at the last evaluation), or the trained one if there is no score:
    the moving average of a short run is still close to its start. A network's name is not checked.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise ValueError(
            f"{run} holds no trained network; give a run folder (outputs/runs/NAME, with checkpoints) or, to "
            f"predict and to export again, a folder that jobs/export.py wrote (with {WEIGHTS})"
        )
    which = checkpoint or ("best" if best_checkpoint(folder) else "newest")
    path = find_checkpoint(run, which)
    asked = f"{which} checkpoint" if which in ("best", "newest") else "checkpoint as asked for"
    if network:
        return Chosen(path, network, f"{asked}; network as asked for")
    found = best_score(folder)
    if found is not None and found.network:
        return Chosen(path, found.network, f"{asked}; best of the run: {found}")
    better = better_report(_reports(run))
    if better and better.network:
        return Chosen(path, better.network, f"{asked}; the better one at the last evaluation")
    return Chosen(path, "online", f"{asked}; the run has no scores to choose by")


def load_chosen(
    run: Path, checkpoint: str, network: str, device: torch.device
) -> tuple[Chosen, RunConfig, dict[str, nn.Module]]:
    """Load both networks of a run's checkpoint, and say which one is meant (see `choose`)."""
    chosen = choose(run, checkpoint, network)
    config, networks = load_networks(run, str(chosen.step), device)
    if chosen.network not in networks:
        near = nearest(chosen.network, networks)
        raise ValueError(f"no network {chosen.network!r} in {run}; there are {', '.join(networks)}{near}")
    return chosen, config, networks


def load_trained(folder: Path, checkpoint: str, which: str, device: torch.device) -> TrainedModel:
    """Load a network from a run folder (see `choose`), or the only one that jobs/export.py wrote."""
    if (folder / WEIGHTS).is_file():
        model = _load_exported(folder, device)
        if checkpoint or which not in ("", model.which):
            raise ValueError(f"{folder} holds one network ({model.source}): there is nothing to choose")
        return model
    chosen, config, networks = load_chosen(folder, checkpoint, which, device)
    network = networks[chosen.network]
    names = _class_names_of_run(folder, config, classes_of(network.state_dict()))
    run = folder.resolve().name
    return TrainedModel(network, config, names, run, chosen.checkpoint.name, chosen.network, str(chosen))


def _class_names_of_run(folder: Path, config: RunConfig, classes: int) -> tuple[str, ...]:
    """Names of a run's foreground classes: from its reports, else from its shards."""
    reported = [report.class_names for report in _reports(folder).values()]
    data = config.data
    try:
        names = reported[0] if reported else describe_split(data.shards, data.val_split).info.class_names
    except (DataError, OSError) as error:
        raise DataError(
            f"{folder} does not say its class names: it has no report yet, and its shards cannot be "
            f"read ({error}); run jobs/evaluate.py, or give the shards back their place"
        ) from None
    if len(names) != classes:
        raise DataError(f"{folder}: {len(names)} class names, but the network has {classes} classes")
    return names


def _reports(run: Path) -> dict[str, EvalReport]:
    """A run's reports; none if one of them cannot be read."""
    try:
        return read_reports(run)
    except (ValueError, OSError):
        return {}


def _load_exported(folder: Path, device: torch.device) -> TrainedModel:
    config = stored_config(read_yaml(folder / CONFIG), str(folder / CONFIG))
    try:
        state = load_file(folder / WEIGHTS, device=str(device))
        names = tuple((folder / CLASSES).read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        network = load_network(config, state, device, stored_colours(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} is no whole export ({reason}); export again") from None
    if len(names) != classes_of(state):
        raise ValueError(
            f"{folder / CLASSES} names {len(names)} classes, not {classes_of(state)}; export again"
        )
    try:
        made_of = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        checkpoint, which = str(made_of["checkpoint"]), str(made_of["network"])
    except (OSError, ValueError, KeyError, TypeError):
        checkpoint, which = "an unknown checkpoint", "online"
    source = f"network {which} of {checkpoint}, exported"
    return TrainedModel(network, config, names, config.name or folder.resolve().name, WEIGHTS, which, source)
