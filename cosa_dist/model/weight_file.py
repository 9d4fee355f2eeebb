"""Weight files: safetensors, or pickles of tensors and plain values. Reading executes no code in them.

Many training scripts save their command line and scores beside the weights. Those types are admitted as inert
stand-ins: a namespace is a bag of values, a path a pure path that touches no file system, a NumPy number
a Python number, anything else of NumPy an empty object. Every other type is refused before it is made.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Names under which training scripts keep a network; the first that is there is taken.
WRAPPERS = (
    *("model", "state_dict", "teacher", "model_ema", "state_dict_ema", "ema", "student"),
    *("module", "net", "network", "backbone", "encoder"),
)
WRAPPING_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
NO_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself: `git lfs pull` gets that",
    b"<": "it is a web page: download the file itself",
}
log = logging.getLogger(__name__)
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
    """Write a safetensors file; OSError if the disk refuses."""
    path.touch()  # with the access rights of any other new file; safetensors leaves others none
    mode = path.stat().st_mode
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from None
    path.chmod(mode)


def save_pickle(content: Any, path: Path) -> None:
    """Write what `torch.save` writes; OSError if the disk refuses."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # how torch says that a disk is full
        raise OSError(f"{path.name} cannot be written: {' '.join(str(error).split())[:200]}") from None


def read_file(path: Path) -> Any:
    """Read a file's content, tensors on the CPU; ValueError if not all is tensors and plain values."""
    try:
        if is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(STAND_INS):  # type: ignore[arg-type]
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = _refused(str(error))
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f"{path} cannot be read as tensors: {_reason_by_content(path) or reason}")


def is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors by its content (a length and JSON), whatever its name ends with."""
    return path.suffix == ".safetensors" if len(head := _head(path)) < 9 else head[8:9] == b"{"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _reason_by_content(path: Path) -> str:
    """Why a file cannot be read, if its first bytes tell."""
    try:
        head = _head(path)
    except OSError:
        return ""
    if not head:
        return "it is empty: download it again"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "its end is missing: download it again"
    if head.startswith(b"PK\x03\x04") and path.suffix == ".safetensors":
        return "it is a file of PyTorch: name it .pth"
    return next((what for mark, what in NO_WEIGHTS.items() if head.lstrip().startswith(mark)), "")


def _refused(message: str) -> str:
    """What PyTorch's long message is about, in a few words."""
    if named := re.search(r"GLOBAL (\S+)", message):
        return (
            f"it holds {named[1]}, which is neither a tensor nor a plain value; nothing in it was run "
            "(of a whole network, save its state_dict())"
        )
    reason = message.partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    return " ".join(reason.split())[:200] or "it is no pickle of tensors"


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Open the wrappers around a state dict: `{"model": ...}`, `{"student": ..., "teacher": ...}`, `module.`.

    What is chosen or left out is logged; ValueError if there is no dictionary of tensors.
    """
    state = content
    while found := [key for key in WRAPPERS if isinstance(state, dict) and _holds_tensors(state.get(key))]:
        if len(found) > 1:
            log.info("%s holds %s: %s is taken", path, ", ".join(found), found[0])
        state = state[found[0]]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a dictionary of tensors (it holds {keys or 'nothing'})")
    if others := [str(name) for name in state if name not in tensors]:
        log.info("%s: %s left out: no tensors", path, ", ".join(others[:5]))
    while prefix := next((p for p in WRAPPING_PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) or _holds_tensors(v) for v in value.values())
