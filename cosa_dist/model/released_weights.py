"""Whole networks in files: the authors' checkpoints (`best_seg.pth`, `best_cam.pth`) and ours, both ways.

An authors' file is a pickle of `{s_or_t, model, epoch, args, result}`; its encoder carries an ImageNet head
of 1000 classes that is never used and never trained. Ours is a safetensors file with the network's own names
and the other facts as metadata. Of the names only the encoder's prefix differs: `encoder.` there,
`backbone.model.` here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cosa_dist.model.weight_file import is_safetensors, read_file, save_pickle, save_tensors, state_dict_of

OURS, THEIRS = "backbone.model.", "encoder."
UNUSED_HEAD = ("encoder.head.weight", "encoder.head.bias")
HEAD_CLASSES = 1000
LETTERS = {"online": "s", "assignment": "t"}
METADATA = "cosa_dist"
RELEASED_NAMES = re.compile(
    r"encoder\.(cls_token|pos_embed"
    r"|(patch_embed\.proj|norm|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(weight|bias))"
    r"|decoder\.conv[678]\.weight|(aux_)?classifier\.weight"
)


@dataclass(frozen=True)
class SavedNetwork:
    """A whole network as a file holds it."""

    state: dict[str, Tensor]
    """tensors by our names, without the unused head"""
    unused_head: dict[str, Tensor] = field(default_factory=dict)
    """the authors' `encoder.head.*`, if the file has it"""
    network: str = "online"
    """`online` (their `s`) or `assignment` (their `t`)"""
    step: int = 0
    """finished steps (their `epoch`)"""
    aux_layer: int | None = None
    """block of the auxiliary map, if the file says so"""
    score: float | None = None
    """their `result`: the best mIoU by the protocol true_labels (seg) or of the CAM (cam)"""


def is_whole_network(state: dict[str, Tensor]) -> bool:
    """Whether a state dict holds backbone and heads, by our names or the authors'."""
    return "classifier.weight" in state and any(name.startswith((OURS, THEIRS)) for name in state)


def read_network(path: Path) -> SavedNetwork:
    """Read a whole network from an authors' .pth or one of our .safetensors, without executing code.

    Raises:
        ValueError: damaged, with code in it, or no whole network.
    """
    return network_of(read_file(path), path)


def network_of(content: Any, path: Path) -> SavedNetwork:
    """Take what `read_file` gave as a whole network.

    Raises:
        ValueError: it is none.
    """
    state = state_dict_of(content, path)
    if not is_whole_network(state):
        raise ValueError(f"{path} holds no whole network (backbone, classifiers and decoder)")
    facts = _our_facts(path) if is_safetensors(path) else _their_facts(content)
    ours = {_renamed(key, THEIRS, OURS): state[key] for key in state if key not in UNUSED_HEAD}
    return SavedNetwork(ours, {key: state[key] for key in UNUSED_HEAD if key in state}, **facts)


def write_ours(saved: SavedNetwork, path: Path, *, keep_head: bool = False) -> None:
    """Write a safetensors file that `model.weights` takes.

    Args:
        saved: the network.
        path: file to make.
        keep_head: also keep the authors' unused head, so that their file can be made again bit for bit.

    Raises:
        OSError: the disk refused; nothing half-written remains.
    """
    head = saved.unused_head if keep_head else {}
    tensors = {**saved.state, **head}
    facts = {"network": saved.network, "step": saved.step, "aux_layer": saved.aux_layer, "score": saved.score}
    _write(path, lambda target: save_tensors(tensors, target, {METADATA: json.dumps(facts)}))


def write_released(saved: SavedNetwork, path: Path) -> None:
    """Write a file that the authors' code loads; an unused head that is not there becomes zeros.

    Their command line is not kept but for `aux_layer`.

    Raises:
        ValueError: the network is none of theirs (a plain ViT with class token, LargeFOV).
        OSError: the disk refused; nothing half-written remains.
    """
    state = {_renamed(key, OURS, THEIRS): value.detach().cpu() for key, value in saved.state.items()}
    strange = sorted(key for key in state if not RELEASED_NAMES.fullmatch(key))
    if strange or "encoder.cls_token" not in state:
        raise ValueError(
            "the released code holds a plain ViT with a class token only; this network "
            + (f"has {', '.join(strange[:3])}" if strange else "has no class token")
        )
    width = state["encoder.cls_token"].shape[-1]
    zeros = (torch.zeros(HEAD_CLASSES, width), torch.zeros(HEAD_CLASSES))
    head = saved.unused_head or dict(zip(UNUSED_HEAD, zeros, strict=True))
    content = {
        "s_or_t": LETTERS[saved.network],
        "model": {**state, **head},
        "epoch": saved.step,
        "args": argparse.Namespace(**({} if saved.aux_layer is None else {"aux_layer": saved.aux_layer})),
        "result": saved.score,
    }
    _write(path, lambda target: save_pickle(content, target))


def _renamed(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def _their_facts(content: Any) -> dict[str, Any]:
    """The facts beside the weights of an authors' file, as far as they are there."""
    result, letter = content.get("result"), content.get("s_or_t")
    aux_layer = getattr(content.get("args"), "aux_layer", None)
    return {
        "network": "assignment" if letter == LETTERS["assignment"] else "online",
        "step": content["epoch"] if isinstance(content.get("epoch"), int) else 0,
        "aux_layer": aux_layer if isinstance(aux_layer, int) else None,
        "score": float(result) if isinstance(result, int | float) else None,
    }


def _our_facts(path: Path) -> dict[str, Any]:
    """The facts in our file's metadata; a run's checkpoint has none and tells by its name."""
    with safe_open(path, framework="pt") as file:
        stored = (file.metadata() or {}).get(METADATA)
    if stored is not None:
        return {
            key: value for key, value in json.loads(stored).items() if key in SavedNetwork.__annotations__
        }
    return {"network": path.stem if path.stem in LETTERS else "online"}


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Write under a temporary name beside `path`, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
