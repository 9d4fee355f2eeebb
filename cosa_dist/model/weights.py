"""Weights of networks in files: those that `model.weights` names, and whole networks, the authors' and ours.

A file holds a backbone (timm's names, or Swin's original ones) or a whole network: the authors' checkpoint (a
pickle of `{s_or_t, model, epoch, args, result}` whose encoder carries an ImageNet head that is never used) or
ours (safetensors with the network's own names and the other facts as metadata). The colours that a network
was trained with are a fact; the authors' are ImageNet's, as are those of our files that do not say.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from cosa_dist.atomic import atomic_file
from cosa_dist.config.method import names_a_file
from cosa_dist.model.backbone import IMAGENET_COLOURS, Backbone, Colours, backbone_of
from cosa_dist.model.network import CosaNetwork
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
# Prefixes of classification heads, and of what only a pretraining by masks uses.
HEADS = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.", "mask_token", "decoder_")
# Prefixes under which a training script's network keeps its backbone.
PARTS = ("teacher.", "backbone.", "model.", "encoder.", "base_encoder.", "student.")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedNetwork:
    """A network as a file holds it."""

    state: dict[str, Tensor]  # by our names, without the unused head
    unused_head: dict[str, Tensor] = field(default_factory=dict)  # the authors' `encoder.head.*`
    network: str = "online"  # `online` (their `s`) or `assignment` (their `t`)
    step: int = 0  # finished steps (their `epoch`)
    aux_layer: int | None = None  # block of the auxiliary map, if the file says so
    score: float | None = None  # their `result`: the best mIoU (true_labels, or of the CAM)
    whole: bool = True  # else the state is that of a backbone or of something else
    colours: Colours | None = IMAGENET_COLOURS  # it was trained with; None if the file does not say


@dataclass(frozen=True)
class WeightSource:
    """Either a timm tag, or a local file, or neither (random weights)."""

    tag: str = ""
    file: Path | None = None


def parse_weight_source(text: str) -> WeightSource:
    """Read the option `model.weights`: `none`, a path (with a slash or a suffix), or a timm tag."""
    if text in ("", "none"):
        return WeightSource()
    if not names_a_file(text):
        return WeightSource(tag=text)
    path = Path(text).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f"model.weights: {path} is a folder; give the file in it")
    if not path.is_file():
        raise FileNotFoundError(
            f"model.weights: no file at {path}; give a path that exists, a timm tag, or none"
        )
    return WeightSource(file=path)


def tensors_for(network: nn.Module, path: Path, aux_layer: int) -> tuple[dict[str, Tensor], Colours | None]:
    """The tensors that a local file has for a network, by the network's names: all, or those of its backbone.

    With them the colours that the file was trained with, if these are known. A network that is not CoSA's
    always gets the tensors of the backbone. A file that was trained with another `aux_layer` is warned of;
    one that is unreadable or does not fit is a ValueError.
    """
    backbone = backbone_of(network)
    try:
        saved = _read(path)
        if saved.whole and isinstance(network, CosaNetwork):
            return _tensors_for_whole(network, saved, path, aux_layer), saved.colours
        found = _tensors_for_backbone(backbone, saved.state, path)
        return {OURS + key: value for key, value in found.items()}, saved.colours
    except ValueError as error:
        raise ValueError(f"model.weights: {error}") from None


def _tensors_for_backbone(backbone: Backbone, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A file's tensors by the names of the backbone's model, found under any number of `PARTS`."""
    own, inside = backbone.model.state_dict(), ""
    found = adapted(backbone, state)
    while not own.keys() & found.keys():
        prefix = next((part for part in PARTS if any(key.startswith(part) for key in state)), "")
        if not prefix:
            raise ValueError(
                f"{path} holds no tensor of the backbone: its names are like {', '.join(list(state)[:3])}, "
                f"the backbone's like {', '.join(list(own)[:3])}; check model.backbone and its options"
            )
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        inside += prefix
        found = adapted(backbone, state)
    if inside not in ("", OURS):
        log.info("model.weights: %s: its part %s is taken", path, inside.rstrip("."))
    _check_fit(own, found, path)
    return found


def adapted(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors without heads, under the backbone's names if they are of its kind."""
    bare = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    try:
        return backbone.adapt(bare)
    except (AttributeError, LookupError, RuntimeError):
        return bare


def _tensors_for_whole(
    network: CosaNetwork, saved: SavedNetwork, path: Path, aux_layer: int
) -> dict[str, Tensor]:
    if saved.aux_layer not in (None, aux_layer):
        log.warning(
            f"model.weights: {path} was trained with model.aux_layer {saved.aux_layer}, this run has "
            f"{aux_layer}: its auxiliary classifier sees other features here"
        )
    inner = {key.removeprefix(OURS): value for key, value in saved.state.items() if key.startswith(OURS)}
    heads = {key: value for key, value in saved.state.items() if not key.startswith(OURS)}
    whole = heads | {OURS + key: value for key, value in adapted(network.backbone, inner).items()}
    own = network.state_dict()
    trained, wanted = len(whole["classifier.weight"]), len(own["classifier.weight"])
    if trained != wanted:
        raise ValueError(
            f"{path} was trained for {trained} classes, this data set has {wanted}; "
            "give a file of this data set, or weights of the backbone alone"
        )
    _check_fit(own, whole, path)
    return whole


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not exactly those of `own`, naming the depth or the first that are wrong."""
    depth, wanted = (
        len({found[1] for key in tensors if (found := re.match(r"(.*?blocks\.\d+)\.", key))})
        for tensors in (state, own)
    )
    if depth != wanted and depth and wanted:
        raise ValueError(f"{path} holds a backbone of {depth} blocks, model.backbone has {wanted}")
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    )
    if missing or unknown or shapes:
        raise ValueError(
            f"{path} does not fit the backbone: missing {missing[:3]}, "
            f"unknown {unknown[:3]}, other shapes {shapes[:3]}; check model.backbone and its options"
        )
    if broken := next((key for key in own if not state[key].isfinite().all()), ""):
        raise ValueError(f"{path} holds numbers that are not finite, in {broken}: take an earlier checkpoint")


def read_network(path: Path) -> SavedNetwork:
    """Read a whole network from an authors' .pth or one of our .safetensors; ValueError if it holds none."""
    saved = _read(path)
    if not saved.whole:
        raise ValueError(f"{path} holds no whole network (backbone, classifiers and decoder)")
    return saved


def _read(path: Path) -> SavedNetwork:
    """A file's tensors, and if these are backbone and heads (by our names or the authors') its facts."""
    content = read_file(path)
    state = state_dict_of(content, path)
    facts = _our_facts(path) if is_safetensors(path) else _their_facts(content)
    if "classifier.weight" not in state or not any(name.startswith((OURS, THEIRS)) for name in state):
        segmenter = is_safetensors(path) and any(name.startswith(OURS) for name in state)
        colours = facts.get("colours", IMAGENET_COLOURS if segmenter else None)
        return SavedNetwork(state, whole=False, colours=colours)
    ours = {_renamed(key, THEIRS, OURS): state[key] for key in state if key not in UNUSED_HEAD}
    return SavedNetwork(ours, {key: state[key] for key in UNUSED_HEAD if key in state}, **facts)


def write_ours(saved: SavedNetwork, path: Path, *, keep_head: bool = False) -> None:
    """Write a safetensors file that `model.weights` takes.

    With `keep_head` it also keeps the authors' unused head, so that their file can be made again bit for bit.
    """
    tensors = saved.state | (saved.unused_head if keep_head else {})
    facts = {"network": saved.network, "step": saved.step, "aux_layer": saved.aux_layer, "score": saved.score}
    with atomic_file(path) as working:
        save_tensors(tensors, working, metadata_of(facts | {"colours": saved.colours}))


def metadata_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The metadata with which our files tell facts of a network, by the names of `SavedNetwork`."""
    return {METADATA: json.dumps(facts)}


def stored_colours(path: Path) -> Colours | None:
    """The colours that one of our files says its network was trained with; None if it does not."""
    return _our_facts(path).get("colours")


def write_released(saved: SavedNetwork, path: Path) -> None:
    """Write a file that the authors' code loads; ValueError if it could not load this network.

    An unused head that is not there becomes zeros; of their command line only `aux_layer` is kept. Colours
    that are not those of their code are warned of.
    """
    if saved.colours != IMAGENET_COLOURS:
        log.warning(
            f"{path}: the network was trained with mean and deviation {saved.colours}, the released code "
            "normalises with ImageNet's: there it is worse (train with model.normalisation imagenet)"
        )
    state = {_renamed(key, OURS, THEIRS): value.detach().cpu() for key, value in saved.state.items()}
    strange = sorted(key for key in state if not RELEASED_NAMES.fullmatch(key))
    if strange or "encoder.cls_token" not in state:
        raise ValueError(
            "the released code holds a plain ViT with a class token only; this network "
            + (f"has {', '.join(strange[:3])}" if strange else "has no class token")
        )
    width = state["encoder.cls_token"].shape[-1]
    zeros = (torch.zeros(HEAD_CLASSES, width), torch.zeros(HEAD_CLASSES))
    content = {
        "s_or_t": LETTERS[saved.network],
        "model": state | (saved.unused_head or dict(zip(UNUSED_HEAD, zeros, strict=True))),
        "epoch": saved.step,
        "args": argparse.Namespace(**({} if saved.aux_layer is None else {"aux_layer": saved.aux_layer})),
        "result": saved.score,
    }
    with atomic_file(path) as working:
        save_pickle(content, working)


def _renamed(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def _their_facts(content: Any) -> dict[str, Any]:
    """The facts beside the weights of an authors' file, as far as they are there."""
    result, step = content.get("result"), content.get("epoch")
    aux_layer = getattr(content.get("args"), "aux_layer", None)
    return {
        "network": "assignment" if content.get("s_or_t") == LETTERS["assignment"] else "online",
        "step": step if isinstance(step, int) else 0,
        "aux_layer": aux_layer if isinstance(aux_layer, int) else None,
        "score": float(result) if isinstance(result, int | float) else None,
    }


def _our_facts(path: Path) -> dict[str, Any]:
    """The facts in our file's metadata; a run's checkpoint tells by its name which network it is."""
    with safe_open(path, framework="pt") as file:
        stored = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    facts = {"network": path.stem if path.stem in LETTERS else "online"} | stored
    if facts.get("colours"):
        mean, std = facts["colours"]
        facts["colours"] = (tuple(mean), tuple(std))
    return {key: value for key, value in facts.items() if key in SavedNetwork.__annotations__}
