"""Where a backbone's weights come from: a timm tag, a local file, or nowhere (random).

Local files are read without executing code: safetensors, or a pickle restricted to tensors.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

HEADS = ("head.", "head_dist.", "fc.", "classifier.", "fc_norm.")


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
    if "/" in text or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        if not path.is_file():
            raise FileNotFoundError(
                f"model.weights: no file at {path}; give a path that exists, a timm tag, or none"
            )
        return WeightSource(file=path)
    return WeightSource(tag=text)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict without executing code; `{"model": ...}` wrappers are opened.

    Raises:
        ValueError: the file is damaged or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model.weights: {path} cannot be read as tensors: {reason}") from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"model.weights: {path} is not a dictionary of tensors")
    return state


def load_backbone_weights(model: nn.Module, source: WeightSource) -> None:
    """Load a local file into a timm model; classification heads in the file are left out.

    Raises:
        ValueError: keys are missing, unknown or of another shape.
    """
    if source.file is None:
        return
    state = {k: v for k, v in read_state_dict(source.file).items() if not k.startswith(HEADS)}
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unknown or shapes:
        raise ValueError(
            f"model.weights: {source.file} does not fit the backbone: missing {missing[:3]}, "
            f"unknown {unknown[:3]}, other shapes {shapes[:3]}; check model.backbone"
        )
    model.load_state_dict(state)
