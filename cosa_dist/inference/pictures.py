"""Which pictures a prediction is made of: files, folders, patterns and shards, each with its output's name.

The names keep the tree below a folder or below the fixed part of a pattern. Two pictures that would get the
same name keep their endings in it, and are numbered if that does not tell them apart. What lies in the output
folder is never taken for input.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.description import DESCRIPTION
from cosa_dist.data.shards.remote import is_remote
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.folder import IMAGE_ENDINGS
from cosa_dist.data.sources.record import unsafe_id, unsafe_name


@dataclass(frozen=True)
class Picture:
    """One picture: its output's name (a relative path without ending) and where its bytes are."""

    name: str
    where: str
    """path, or record and split, for messages"""
    path: str = ""
    """file; empty for a record of shards"""
    root: str = ""
    """shard folder of the record"""
    split: str = ""
    """its split"""
    index: int = 0
    """its number there"""


@dataclass(frozen=True)
class Skipped:
    """A picture that gets no output, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.where)}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """Pictures to predict on, those whose name cannot be used, and the number of other files passed by."""

    pictures: list[Picture]
    skipped: list[Skipped]
    others: int


def printable(text: str) -> str:
    """The text with what a terminal cannot print (control characters, broken encodings) escaped."""
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def list_pictures(words: Sequence[str], out: Path, split: str = "val") -> Listing:
    """Find the pictures that some words name.

    Args:
        words: files, folders of pictures, patterns such as `photos/**/*.jpg`, and shard folders.
        out: output folder, left out of the search.
        split: split of the shard folders.

    Raises:
        DataError: a word that names nothing, or no picture at all.
    """
    found: list[Picture] = []
    skipped: list[Skipped] = []
    others = 0
    for word in words:
        if is_remote(word) or (Path(word) / DESCRIPTION).is_file():
            found += _records(word, split)
            continue
        for name, path in _files(word):
            if _lies_in(path, out):
                continue
            if not name.lower().endswith(IMAGE_ENDINGS) and path != word:
                others += 1
            elif reason := unsafe_name(name):
                skipped.append(Skipped(path, reason))
            else:
                found.append(Picture(name, path, path=path))
    if not found and not skipped:
        raise DataError(
            f"no picture in {', '.join(map(printable, words))}; pictures end in {' '.join(IMAGE_ENDINGS)}"
        )
    return Listing(_with_own_names(_once(found)), skipped, others)


def _records(root: str, split: str) -> list[Picture]:
    """The records of a split; an id that is no plain file name is refused with the whole folder."""
    opened = open_split(root, split)
    for record_id in opened.ids:
        if reason := unsafe_id(record_id):
            raise DataError(f"record {record_id!r} of split '{split}' in {root}: {reason}")
    return [
        Picture(record_id, f"record '{record_id}' of split '{split}' in {root}", "", root, split, index)
        for index, record_id in enumerate(opened.ids)
    ]


def _files(word: str) -> Iterator[tuple[str, str]]:
    """Yield (name below the word's folder, path) of the files that a word names, in order."""
    if os.path.isdir(word):
        yield from _below(word)
    elif os.path.lexists(word):
        yield os.path.basename(word), word
    elif glob.has_magic(word):
        base = _fixed_part(word)
        matches = sorted(glob.glob(word, recursive=True))
        if not matches:
            raise DataError(f"no file matches {printable(word)}")
        for path in matches:
            if not os.path.isdir(path):
                yield Path(os.path.relpath(path, base)).as_posix(), path
    else:
        raise DataError(f"no file or folder {printable(word)}")


def _below(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the files below a folder; hidden ones and links to folders are not entered."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                path = os.path.join(place, name)
                yield Path(os.path.relpath(path, folder)).as_posix(), path


def _fixed_part(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.split("/")[:-1]
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")


def _lies_in(path: str, folder: Path) -> bool:
    """Whether a file lies below a folder (links in the file's own name are not followed)."""
    parent = os.path.realpath(os.path.dirname(path) or ".")
    return f"{parent}/".startswith(f"{os.path.realpath(folder)}/")


def _once(found: Iterable[Picture]) -> list[Picture]:
    """The pictures without those that were named twice."""
    unique: dict[object, Picture] = {}
    for picture in found:
        key = os.path.abspath(picture.path) if picture.path else (picture.root, picture.split, picture.index)
        unique.setdefault(key, picture)
    return list(unique.values())


def _with_own_names(found: Sequence[Picture]) -> list[Picture]:
    """Give each picture a name of its own, also on a disk that does not tell upper case from lower."""
    short = [_without_ending(picture) for picture in found]
    shared = Counter(name.casefold() for name in short)
    names = [
        name if shared[name.casefold()] == 1 else picture.name
        for name, picture in zip(short, found, strict=True)
    ]
    taken: set[str] = set()
    chosen = []
    for picture, name in zip(found, names, strict=True):
        own, number = name, 1
        while own.casefold() in taken:
            number += 1
            own = f"{name}-{number}"
        taken.add(own.casefold())
        chosen.append(replace(picture, name=own))
    return chosen


def _without_ending(picture: Picture) -> str:
    """A file's name without its ending; a record's id has none."""
    if not picture.path:
        return picture.name
    folder, _, name = picture.name.rpartition("/")
    stem = name.rsplit(".", 1)[0] or name
    return f"{folder}/{stem}" if folder else stem
