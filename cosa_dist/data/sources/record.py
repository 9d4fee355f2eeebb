"""The words of every source: a record with contents that are fetched late, and a rejection.

A source is an iterable of `SourceRecord` (where a picture, its mask and its tags are) and
`Rejection` (an entry that is left out, and why). Contents are small descriptions, read one at a
time and perhaps in another process, so that a listing of a large data set stays small.
Lists, tables and JSON files are input like any other: a name in them never leads out of the folder
that it belongs to, neither by `..` nor through a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cosa_dist.data.errors import RecordError, Rejection

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
        """A text that changes when the content does, made without reading it all."""


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
        """Return the file's bytes; raises `RecordError` where it is absent, outside or no file."""
        path = self._path()
        if not _lies_inside(path, self.root):
            raise RecordError("file is a link that leaves its folder; put a copy in its place")
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
            if status.st_size > MAX_FILE_BYTES:
                raise RecordError(f"file is larger than {MAX_FILE_BYTES} bytes; scale the picture down")
            return opened.read()

    def identity(self) -> str:
        """Path, size and time of the last change."""
        try:
            status = os.stat(self._path())
        except OSError:
            return f"{self.root}/{self.name} absent"
        return f"{self.root}/{self.name} {status.st_size} {status.st_mtime_ns}"

    def exists(self) -> bool:
        """Whether there is such a file."""
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

    `mask` None means that there is none; `tags` are 0-based foreground indices, None takes them
    from the mask; `context` is only there for generated pictures.
    """

    id: str
    image: bytes | Content
    mask: bytes | Content | None = None
    tags: tuple[int, ...] | None = None
    context: bytes | Content | None = None


Entry = SourceRecord | Rejection
"""What a source yields."""

Tell = Callable[[str], None]
"""Takes a line about how a source was read (what was counted, left out or taken for what), for its user."""


def untold(line: str) -> None:
    """Drop a line: the `Tell` of callers that have no user."""


def entry_identity(entry: Entry) -> str:
    """Return a text that changes when the entry or one of its contents does."""
    if isinstance(entry, Rejection):
        return repr(entry)
    parts = (entry.image, entry.mask, entry.context)
    return "\n".join((repr(entry.id), repr(entry.tags), *map(_content_identity, parts)))


def unsafe_id(record_id: str) -> str | None:
    """Return why an id must not be used as a file name, or None if it may."""
    if not record_id or len(record_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return f"id is empty or longer than {MAX_ID_BYTES} bytes; rename the file"
    if "/" in record_id or "\\" in record_id or record_id in {".", ".."}:
        return "id leaves its folder; ids are plain file names without the ending"
    if not record_id.isprintable():
        return "id holds characters that cannot be printed; rename the file"
    return None


def unsafe_name(name: str) -> str | None:
    """Return why the relative path `name` must not be opened, or None if it may."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or ".." in parts or "://" in name:
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
        other = first.get(entry.id)
        if other is None:
            first[entry.id] = entry
            kept.append(entry)
            continue
        reason, where = "id occurs twice in the list; the first one is kept", ""
        if isinstance(entry, SourceRecord) and isinstance(other, SourceRecord) and entry.image != other.image:
            reason = f"id belongs to another picture too ({_place(other)}), which is kept; rename one of them"
            where = _place(entry)
        kept.append(Rejection(entry.id, reason, where))
    return kept


def _place(record: SourceRecord) -> str:
    """Return where a record's picture is."""
    return record.id if isinstance(record.image, bytes) else record.image.where


def _content_identity(content: bytes | Content | None) -> str:
    """Return the identity of a content, of bytes their hash."""
    if content is None:
        return "-"
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content.identity()


def _lies_inside(path: str, root: Path) -> bool:
    """Whether `path`, its links followed, is a plain file or absent below `root`."""
    folder, name = os.path.split(path)
    real = os.path.realpath(path) if os.path.islink(path) else f"{_real(folder)}/{name}"
    if os.path.exists(real) and not stat.S_ISREG(os.stat(real).st_mode):
        raise RecordError("is not a plain file; put the picture's file in its place")
    return real.startswith(f"{_real(str(root)).rstrip('/')}/")


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """Return a folder's path with its links followed; remembered, since a folder holds many files."""
    return os.path.realpath(folder)
