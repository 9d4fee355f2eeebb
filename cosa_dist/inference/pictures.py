"""Which pictures a prediction is made of (files, folders, patterns and shards), and their pixels.

The names of outputs keep the tree below a folder or below the fixed part of a pattern. As in training, EXIF
rotation is not applied: a mask belongs to the pixels as they are stored, and gets the picture's orientation.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, count
from pathlib import Path, PurePosixPath

from torch import Tensor

from cosa_dist.data.decode import decode_image, orientation_of
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.reading.views import to_tensor
from cosa_dist.data.shards.remote import is_remote
from cosa_dist.data.shards.split import DESCRIPTION, MappedSplit, open_split
from cosa_dist.data.sources.folder import IMAGE_ENDINGS
from cosa_dist.data.sources.record import MAX_FILE_BYTES, unsafe_id, unsafe_name


@dataclass(frozen=True)
class Picture:
    """One picture: its output's name (a relative path without ending) and where its bytes are."""

    name: str
    where: str  # path, or record and split, for messages
    path: str = ""  # file; empty for record number `index` of a split in the shard folder `root`
    root: str = ""
    split: str = ""
    index: int = 0


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


@dataclass(frozen=True)
class ReadPicture:
    """A picture's pixels `[3, H, W]` uint8 as they are stored, and its EXIF orientation (1..8)."""

    pixels: Tensor
    orientation: int = 1


def printable(text: str) -> str:
    """The text with what a terminal cannot print (control characters, broken encodings) escaped."""
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def list_pictures(words: Sequence[str], out: Path, split: str = "val") -> Listing:
    """Find the pictures that some words name, except those in the output folder.

    Words are files, folders of pictures, patterns such as `photos/**/*.jpg`, and shard folders, of which a
    split is taken. Raises DataError for a word that names nothing, or if there is no picture at all.
    """
    found: list[Picture] = []
    skipped: list[Skipped] = []
    others, outputs = 0, f"{os.path.realpath(out)}/"
    for word in words:
        if is_remote(word) or (Path(word) / DESCRIPTION).is_file():
            found += _records(word, split)
            continue
        for name, path in _files(word):
            # Links in the file's own name are not followed.
            if f"{os.path.realpath(os.path.dirname(path) or '.')}/".startswith(outputs):
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
    return Listing(_with_own_names(found), skipped, others)


def _records(root: str, split: str) -> list[Picture]:
    """The records of a split; an id that is no plain file name is refused with the whole folder."""
    ids = open_split(root, split).ids
    for record_id in ids:
        if reason := unsafe_id(record_id):
            raise DataError(f"record {record_id!r} of split '{split}' in {root}: {reason}")
    return [
        Picture(record_id, f"record '{record_id}' of split '{split}' in {root}", "", root, split, index)
        for index, record_id in enumerate(ids)
    ]


def _files(word: str) -> Iterator[tuple[str, str]]:
    """Yield (name below the word's folder, path) of the files that a word names, in order."""
    if os.path.isdir(word):
        # Hidden files and folders are left out, links to folders are not entered.
        for place, folders, files in os.walk(word):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                path = os.path.join(place, name)
                yield Path(os.path.relpath(path, word)).as_posix(), path
    elif os.path.lexists(word):
        yield os.path.basename(word), word
    elif glob.has_magic(word):
        parts = word.split("/")[:-1]
        fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        base = "/".join(parts[:fixed]) or ("/" if word.startswith("/") else ".")
        matches = sorted(glob.glob(word, recursive=True))
        if not matches:
            raise DataError(f"no file matches {printable(word)}")
        for path in matches:
            if not os.path.isdir(path):
                yield Path(os.path.relpath(path, base)).as_posix(), path
    else:
        raise DataError(f"no file or folder {printable(word)}")


def _with_own_names(found: Sequence[Picture]) -> list[Picture]:
    """The pictures without those named twice, each with its own name even where case does not count.

    Pictures that would get the same name keep their endings, and are numbered if that is not enough.
    """
    unique: dict[object, Picture] = {}
    for picture in found:
        key = os.path.abspath(picture.path) if picture.path else (picture.root, picture.split, picture.index)
        unique.setdefault(key, picture)
    # A file's name loses its ending; a record's id has none.
    short = [str(PurePosixPath(p.name).with_suffix("")) if p.path else p.name for p in unique.values()]
    shared = Counter(name.casefold() for name in short)
    taken: set[str] = set()
    named = []
    for picture, name in zip(unique.values(), short, strict=True):
        wanted = name if shared[name.casefold()] == 1 else picture.name
        candidates = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
        own = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(own.casefold())
        named.append(replace(picture, name=own))
    return named


def read_picture(picture: Picture) -> ReadPicture | Skipped:
    """The picture, read with the limits and the decoder of training, or why it cannot be read."""
    try:
        if picture.path:
            data = _file_bytes(picture.path)
        else:
            data = _opened(picture.root, picture.split).record(picture.index, annotations=False).image
        decoded = decode_image(data)
        return ReadPicture(to_tensor(decoded), orientation_of(decoded))
    except RecordError as error:
        return Skipped(picture.where, str(error))
    except OSError as error:
        return Skipped(picture.where, f"cannot be read: {error.strerror or type(error).__name__}")


def _file_bytes(path: str) -> bytes:
    """A plain file's bytes; pipes and devices, which may never end, are not opened."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise RecordError("is not a plain file; put the picture's file in its place")
    if not status.st_size:
        raise RecordError("file is empty (0 bytes); copy it again")
    if status.st_size > MAX_FILE_BYTES:
        raise RecordError(f"file is larger than {MAX_FILE_BYTES} bytes; scale the picture down")
    with open(path, "rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


@lru_cache(maxsize=8)
def _opened(root: str, split: str) -> MappedSplit:
    return open_split(root, split)
