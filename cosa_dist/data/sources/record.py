"""Records of a source, whose contents are fetched late and in any process, and the checks of names in it.

A source yields a `SourceRecord` for each picture and a `Rejection` for what is left out. Lists, tables and
JSON files are input like any other: a name in them never leads out of its folder, neither by `..` nor through
a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cosa_dist.data.errors import DataError, RecordError, Rejection

MAX_ID_BYTES = 200
MAX_FILE_BYTES = 2**28
"""Largest picture file that is read (256 MiB)."""


class Content(Protocol):
    """Bytes of a picture or a mask that can be fetched anywhere; must be small and picklable."""

    @property
    def where(self) -> str:
        """The place in words for messages."""

    def read(self) -> bytes:
        """Return the bytes; raises `RecordError` where they cannot be had."""

    def identity(self) -> str:
        """Return a text that changes when the content does, made without reading it all."""


@dataclass(frozen=True, slots=True)
class File:
    """A file `name` (a relative path with forward slashes) that must lie inside the folder `root`."""

    root: Path
    name: str

    @property
    def where(self) -> str:
        """Folder and name."""
        return f"{self.root.name}/{self.name}"

    def read(self) -> bytes:
        """Return the file's bytes; raises `RecordError` where it is outside, too large or no plain file."""
        path = self._path()
        if not _lies_inside(path, self.root):
            raise RecordError("file is a link that leaves its folder; put a copy in its place")
        with open(path, "rb") as opened:
            if os.fstat(opened.fileno()).st_size > MAX_FILE_BYTES:
                raise RecordError(f"file is larger than {MAX_FILE_BYTES} bytes; scale the picture down")
            return opened.read()

    def identity(self) -> str:
        """Return path, size and time of the last change."""
        try:
            status = os.stat(self._path())
        except OSError:
            return f"{self.root}/{self.name} absent"
        return f"{self.root}/{self.name} {status.st_size} {status.st_mtime_ns}"

    def exists(self) -> bool:
        """Return whether there is such a file."""
        return os.path.isfile(self._path())

    def _path(self) -> str:
        """Return the path; where the name's accents are written otherwise on disk, in that spelling."""
        path = f"{self.root}/{self.name}"
        if self.name.isascii() or os.path.lexists(path):
            return path
        spellings = (f"{self.root}/{unicodedata.normalize(form, self.name)}" for form in ("NFC", "NFD"))
        return next((spelling for spelling in spellings if os.path.lexists(spelling)), path)


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One picture as the source has it.

    `tags` are 0-based foreground indices, None takes them from the mask; only generated pictures have
    `context`.
    """

    id: str
    image: bytes | Content
    mask: bytes | Content | None = None
    tags: tuple[int, ...] | None = None
    context: bytes | Content | None = None


Entry = SourceRecord | Rejection
"""What a source yields."""


def entry_identity(entry: Entry) -> str:
    """Return a text that changes when the entry or one of its contents does."""
    if isinstance(entry, Rejection):
        return repr(entry)
    contents = (
        "-"
        if part is None
        else hashlib.sha256(part).hexdigest()
        if isinstance(part, bytes)
        else part.identity()
        for part in (entry.image, entry.mask, entry.context)
    )
    return "\n".join((repr(entry.id), repr(entry.tags), *contents))


def unsafe_id(record_id: str) -> str | None:
    """Return why an id must not be used as a file name, or None if it may."""
    if not record_id or len(record_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return f"id is empty or longer than {MAX_ID_BYTES} bytes; rename the file"
    if "/" in record_id or "\\" in record_id or record_id in {".", ".."}:
        return "id leaves its folder; ids are plain file names without the ending"
    return None if record_id.isprintable() else "id holds characters that cannot be printed; rename the file"


def unsafe_name(name: str) -> str | None:
    """Return why the relative path `name` must not be opened, or None if it may."""
    if not name or name.startswith("/") or "\\" in name or ".." in name.split("/") or "://" in name:
        return "file name is empty or leaves its folder; names are relative paths with forward slashes"
    return None if name.isprintable() else "file name holds characters that cannot be printed; rename it"


def id_of(name: str) -> str:
    """Return the id of a file: its relative path without the ending, folders joined by `__`."""
    stem = name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1][1:] else name
    return unicodedata.normalize("NFC", "__".join(part for part in stem.split("/") if part != "."))


def duplicates_rejected(entries: Iterable[Entry]) -> list[Entry]:
    """Return all entries, each id that came before replaced by a rejection."""
    first: dict[str, Entry] = {}
    kept: list[Entry] = []
    for entry in entries:
        other = first.setdefault(entry.id, entry)
        reason, where = "id occurs twice in the list; the first one is kept", ""
        if isinstance(entry, SourceRecord) and isinstance(other, SourceRecord) and entry.image != other.image:
            place, where = (r.id if isinstance(r.image, bytes) else r.image.where for r in (other, entry))
            reason = f"id belongs to another picture too ({place}), which is kept; rename one of them"
        kept.append(entry if other is entry else Rejection(entry.id, reason, where))
    return kept


def read_text(path: Path, what: str, cure: str) -> str:
    """Return the text of a file; raises `DataError` if it is not UTF-8 or, with a cure, not there."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"no {what} {path}{cure}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path} is not UTF-8 text; save it as UTF-8") from error


def _lies_inside(path: str, root: Path) -> bool:
    """Whether `path`, its links followed, is a plain file or absent below `root`."""
    here = os.getcwd()
    folder, name = os.path.split(os.path.join(here, path))
    real = os.path.realpath(path) if os.path.islink(path) else f"{_real(folder)}/{name}"
    if os.path.exists(real) and not stat.S_ISREG(os.stat(real).st_mode):
        raise RecordError("is not a plain file; put the picture's file in its place")
    return real.startswith(f"{_real(os.path.join(here, root)).rstrip('/')}/")


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """Return a folder's path with its links followed; remembered, since a folder holds many files."""
    return os.path.realpath(folder)
