"""Where a network's weights come from: a timm tag, a local file, or nowhere (random).

A local file holds either a backbone (timm's names, or Swin's original ones) or a whole network (the authors'
checkpoint or ours: backbone and heads). It is read without executing code, and every tensor must find its
place.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cosa_dist.config.method import names_a_file
from cosa_dist.model.released_weights import OURS, SavedNetwork, is_whole_network, network_of
from cosa_dist.model.weight_file import read_file, state_dict_of

if TYPE_CHECKING:
    from cosa_dist.model.backbone_base import Backbone
    from cosa_dist.model.network import CosaNetwork

HEADS = ("head.", "head_dist.", "fc.", "classifier.", "fc_norm.", "pre_logits.", "mask_token", "decoder_")
"""of classification, and what only a pretraining by masks uses"""
PARTS = ("teacher.", "backbone.", "model.", "encoder.", "base_encoder.", "student.")
"""prefixes under which a training script's network keeps its backbone"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightSource:
    """Either a timm tag, or a local file, or neither (random weights)."""

    tag: str = ""
    file: Path | None = None


def parse_weight_source(text: str) -> WeightSource:
    """Read the option `model.weights`: `none`, a path (with a slash or a suffix), or a timm tag.

    Raises:
        FileNotFoundError: a path that is no file.
    """
    if text in ("", "none"):
        return WeightSource()
    path = Path(text).expanduser()
    if names_a_file(text):
        if not path.is_file():
            if path.is_dir():
                raise FileNotFoundError(f"model.weights: {path} is a folder; give the file in it")
            raise FileNotFoundError(
                f"model.weights: no file at {path}; give a path that exists, a timm tag, or none"
            )
        return WeightSource(file=path)
    return WeightSource(tag=text)


def load_backbone_file(backbone: Backbone, path: Path) -> None:
    """Load a local file into a backbone; of a whole network's file, only the backbone's part.

    Args:
        backbone: changed in place; untouched if the file does not fit.
        path: the file.

    Raises:
        ValueError: unreadable, or tensors are missing, unknown or of another shape.
    """
    backbone.model.load_state_dict(backbone_tensors(backbone, path))


def backbone_tensors(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone from a local file, under the names of its model's `state_dict`.

    Raises:
        ValueError: see `load_backbone_file`.
    """
    try:
        content = read_file(path)
        state = state_dict_of(content, path)
        if is_whole_network(state):
            state = network_of(content, path).state
        return _fitting_backbone(backbone, state, path)
    except ValueError as error:
        raise ValueError(f"model.weights: {error}") from None


def load_weight_file(network: CosaNetwork, path: Path, aux_layer: int) -> None:
    """Load a local file into the network: the backbone alone or, from a whole network's file, the heads too.

    Args:
        network: changed in place; untouched if the file does not fit.
        path: the file.
        aux_layer: the configured `model.aux_layer`; a file that was trained with another is warned of.

    Raises:
        ValueError: unreadable, or tensors are missing, unknown or of another shape.
    """
    network.load_state_dict(network_tensors(network, path, aux_layer), strict=False)


def network_tensors(network: CosaNetwork, path: Path, aux_layer: int) -> dict[str, Tensor]:
    """The tensors that a local file has for a network: all of them, or those of the backbone.

    Raises:
        ValueError: see `load_weight_file`.
    """
    try:
        content = read_file(path)
        state = state_dict_of(content, path)
        if is_whole_network(state):
            return _fitting_whole(network, network_of(content, path), path, aux_layer)
        own = _fitting_backbone(network.backbone, state, path)
        return {OURS + key: value for key, value in own.items()}
    except ValueError as error:
        raise ValueError(f"model.weights: {error}") from None


def _fitting_backbone(backbone: Backbone, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    own, inside = backbone.model.state_dict(), ""
    found = _adapted(backbone, state)
    while not own.keys() & found.keys():
        prefix = next((part for part in PARTS if any(key.startswith(part) for key in state)), "")
        if not prefix:
            raise ValueError(
                f"{path} holds no tensor of the backbone: its names are like {', '.join(list(state)[:3])}, "
                f"the backbone's like {', '.join(list(own)[:3])}; check model.backbone and its options"
            )
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        inside += prefix
        found = _adapted(backbone, state)
    if inside not in ("", OURS):
        log.info("model.weights: %s: its part %s is taken", path, inside.rstrip("."))
    _check_fit(own, found, path)
    return found


def _adapted(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors without heads, under the backbone's names if they are of its kind."""
    bare = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    try:
        return backbone.adapt(bare)
    except (AttributeError, LookupError, RuntimeError):
        return bare


def _fitting_whole(
    network: CosaNetwork, saved: SavedNetwork, path: Path, aux_layer: int
) -> dict[str, Tensor]:
    if saved.aux_layer not in (None, aux_layer):
        log.warning(
            "model.weights: %s was trained with model.aux_layer %d, this run has %d: its auxiliary "
            "classifier sees other features here",
            path,
            saved.aux_layer,
            aux_layer,
        )
    inner = {key.removeprefix(OURS): value for key, value in saved.state.items() if key.startswith(OURS)}
    heads = {key: value for key, value in saved.state.items() if not key.startswith(OURS)}
    whole = heads | {OURS + key: value for key, value in _adapted(network.backbone, inner).items()}
    own = network.state_dict()
    _check_classes(own, whole, path)
    _check_fit(own, whole, path)
    return whole


def _check_classes(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    trained, wanted = len(state["classifier.weight"]), len(own["classifier.weight"])
    if trained != wanted:
        raise ValueError(
            f"{path} was trained for {trained} classes, this data set has {wanted}; "
            "give a file of this data set, or weights of the backbone alone"
        )


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not exactly those of `own`, naming the depth or the first that are wrong."""
    depth, wanted = _blocks(state), _blocks(own)
    if depth != wanted and depth and wanted:
        raise ValueError(f"{path} holds a backbone of {depth} blocks, model.backbone has {wanted}")
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
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
    broken = next((key for key in own if not state[key].isfinite().all()), "")
    if broken:
        raise ValueError(f"{path} holds numbers that are not finite, in {broken}: take an earlier checkpoint")


def _blocks(state: dict[str, Tensor]) -> int:
    """How many transformer blocks these tensors belong to."""
    found = (re.match(r"(.*?blocks\.\d+)\.", key) for key in state)
    return len({match.group(1) for match in found if match})
