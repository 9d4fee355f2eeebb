"""Weight files: safetensors, or pickles of tensors and plain values. Reading executes no code in them.

Many training scripts save their command line and scores beside the weights. Those types are admitted as inert
stand-ins: a namespace is a bag of values, a path a pure path that touches no file system, a NumPy number
a Python number, anything else of NumPy an empty object. Every other type is refused before it is made.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

WRAPPERS = ("model", "state_dict")
PARALLEL_PREFIX = "module."
NUMBER_FORMATS = {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}


class Unread:
    """Stands for a NumPy object in a file: keeps what it was called with, does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


def _number(kind: Unread, raw: bytes) -> float | int | Unread:
    """Value of a pickled NumPy number in little-endian byte order, as every common machine writes it."""
    code = NUMBER_FORMATS.get(str(kind.arguments[0]))
    return struct.unpack(f"<{code}", raw)[0] if code else Unread(kind, raw)


# (what is made instead, the name in the pickle); names differ by Python's and NumPy's version.
STAND_INS = [
    (argparse.Namespace, "argparse.Namespace"),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((Unread, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (Unread, "numpy.dtype"),
    (Unread, "numpy.ndarray"),
]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the access rights of any other new file; safetensors leaves others none.

    Raises:
        OSError: the disk refused.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from None
    path.chmod(mode)


def save_pickle(content: Any, path: Path) -> None:
    """Write what `torch.save` writes.

    Raises:
        OSError: the disk refused.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:  # how torch says that a disk is full
        raise OSError(f"{path.name} cannot be written: {' '.join(str(error).split())[:200]}") from None


def read_file(path: Path) -> Any:
    """Read a file's content, tensors on the CPU.

    Raises:
        ValueError: damaged, or with something in it that is neither tensor nor plain value.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(STAND_INS):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read as tensors: {_refused(str(error))}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as tensors: {reason}") from None


def _refused(message: str) -> str:
    """What PyTorch's long message is about, in a few words."""
    named = re.search(r"GLOBAL (\S+)", message)
    if named:
        return (
            f"it holds {named.group(1)}, which is neither a tensor nor a plain value; nothing in it was run"
        )
    return (
        " ".join(message.partition("WeightsUnpickler error:")[2].split())[:200]
        or "it is no pickle of tensors"
    )


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Open the wrappers around a state dict: `{"model": ...}`, `{"state_dict": ...}`, `module.` prefixes.

    Raises:
        ValueError: there is no dictionary of tensors.
    """
    state = content
    for _ in WRAPPERS:
        inner = next((state[key] for key in WRAPPERS if isinstance(state, dict) and key in state), None)
        state = inner if isinstance(inner, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is not a dictionary of tensors")
    if all(name.startswith(PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in state.items()}
    return dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name.

    Raises:
        ValueError: see `read_file` and `state_dict_of`.
    """
    return state_dict_of(read_file(path), path)
