"""The folder of checkpoints: names, sealing, verification, which one is best, which ones are kept.

A checkpoint is a folder, sealed with the size and SHA-256 of each file and written atomically; so one that
is there is whole, unless it was damaged later, and `read_checkpoint` finds that out. Nothing here knows
networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosa_dist.atomic import atomic_folder, atomic_write, temporary_path

FORMAT = 1
PREFIX = "step-"
STATE = "state.json"
BEST = "best.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """An evaluation in the numbers by which checkpoints are compared."""

    miou: float  # unfiltered mIoU (%) of the better network
    network: str = ""  # its name in reports; empty in run folders of earlier versions
    images: int = 0  # on so many images, the same in every evaluation of the run

    def __str__(self) -> str:
        return f"unfiltered mIoU {self.miou:.2f} on {self.images} images"

    @classmethod
    def read(cls, noted: object) -> Score | None:
        """The score in a note; None in one of an earlier version, which holds none."""
        if not isinstance(noted, dict) or not isinstance(noted.get("miou"), int | float):
            return None
        return cls(noted["miou"], str(noted.get("network", "")), noted.get("images", 0))


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file and why."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint that is damaged or incomplete; an older one may serve."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` finished steps."""
    return f"{PREFIX}{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def store_checkpoint(
    folder: Path,
    content: Mapping[str, Any],
    write: Callable[[Path], None],
    *,
    keep: int,
    best: Score | None,
    whole: bool = False,
) -> Path:
    """Let `write` fill a checkpoint below `folder`; one that is there whole stays as it is. Return its path.

    `content` is its JSON part; `whole`: it is known to be there, and need not be verified.
    Keeps the newest `keep` checkpoints and the best; with `best`, the score that makes it so, this one is
    also noted as the best. An OSError leaves no half-written checkpoint, and none is deleted.
    """
    target = folder / checkpoint_name(content["step"])
    if not (whole and target.is_dir()) and not _is_whole(target):
        noted = {**content, "best": asdict(best) if best else False}
        with new_checkpoint(folder, content["step"], noted) as working:
            write(working)
    if best:
        _note_best(folder, target.name, best)
    kept = best_checkpoint(folder)
    for path in checkpoints(folder)[:-keep]:
        if path != kept:
            shutil.rmtree(path)
    return target


@contextmanager
def new_checkpoint(folder: Path, step: int, content: Mapping[str, Any]) -> Iterator[Path]:
    """Give a temporary folder to fill; sealed with its JSON part it becomes the checkpoint of `step`."""
    with atomic_folder(folder / checkpoint_name(step), replace=True, sync=True) as working:
        yield working
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
            for path in sorted(working.iterdir())
        }
        whole = {"format": FORMAT, **content, "files": files}
        whole["digest"] = _digest_of(whole)
        (working / STATE).write_text(json.dumps(whole, indent=1), encoding="utf-8")


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Path and JSON part of the newest whole checkpoint below `folder`; None if there is no checkpoint.

    To be called by one process only: it clears away what killed ones left half-written, and notes the
    checkpoint as the best again if a kill came between its writing and that note.
    """
    remove_half_written(folder)
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            content = read_checkpoint(path)
        except BrokenCheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            continue
        if content.get("best"):
            _note_best(folder, path.name, Score.read(content["best"]))
        return path, content
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} can be used")
    return None


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes left below `folder` under temporary names.

    A process that is still writing fails: what it writes has another name before the first file goes, so it
    cannot become a checkpoint that lacks some.
    """
    for leftover in folder.glob(f".{PREFIX}*"):
        doomed = temporary_path(folder / f"{PREFIX}removed")
        with suppress(OSError):  # it has just become a checkpoint, or the disk refuses
            leftover.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify a checkpoint's files and return its JSON part."""
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"{path}: {STATE} cannot be read ({error})") from None
    if not isinstance(content, dict) or "format" not in content:
        raise BrokenCheckpointError(f"{path}: {STATE} is not that of a checkpoint")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {content['format']}, this version reads {FORMAT}; finish the run "
            "with the version that started it, or start a new one"
        )
    # Checkpoints of the first days have no digest of state.json.
    if content.get("digest", _digest_of(content)) != _digest_of(content):
        raise BrokenCheckpointError(f"{path}: {STATE} has changed since it was written")
    for name, facts in content["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise BrokenCheckpointError(f"{path}: {name} is missing or has another size than written")
        if _digest(file) != facts["sha256"]:
            raise BrokenCheckpointError(f"{path}: {name} has changed since it was written")
    return content


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _note_best(folder: Path, name: str, score: Score | None) -> None:
    note = {"checkpoint": name} | ({"score": asdict(score)} if score else {})
    atomic_write(folder / BEST, json.dumps(note))


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint below `folder`, if one was noted and is still there."""
    note = _read_note(folder)
    path = folder / str(note.get("checkpoint", ""))
    return path if note and path.is_dir() else None


def best_score(folder: Path) -> Score | None:
    """The score of the best checkpoint below `folder`, if that is there and was noted with one."""
    return Score.read(_read_note(folder).get("score")) if best_checkpoint(folder) else None


def _read_note(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / BEST).read_text(encoding="utf-8"))
        if not note["checkpoint"].startswith(PREFIX):
            raise ValueError(note)
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{folder / BEST} is damaged; name a checkpoint and a network, or remove it"
        ) from None
    return note


def find_checkpoint(run: Path, which: str) -> Path:
    """Path of a run's checkpoint, `newest`, `best` or a step number; the error lists those there."""
    folder = run / "checkpoints"
    found = checkpoints(folder)
    wanted: Path | None = None
    if which == "newest" and found:
        wanted = found[-1]
    elif which == "best":
        wanted = best_checkpoint(folder)
    elif which.isdigit():
        wanted = folder / checkpoint_name(int(which))
    if wanted is None or wanted not in found:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"no checkpoint {which!r} in {folder}; there are: {names}")
    return wanted


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
