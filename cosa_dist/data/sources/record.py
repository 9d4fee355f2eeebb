"""What all sources share: records, names in them, the user's options, columns, and names of splits.

A source yields a `SourceRecord`, whose contents are fetched late and in any process, for each picture and a
`Rejection` for what is left out. Lists, tables and JSON files are input like any other: a name in them never
leads out of its folder, neither by `..` nor through a link.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from cosa_dist.data.errors import DataError, RecordError, Rejection, nearest_name, printable

Tags = tuple[str, ...] | str
"""The tags of a row; a text says why they cannot be read."""

Notify = Callable[[str], None]
"""Takes a line for the user on how a source was read: what was counted, left out or taken for what."""

TRAIN, VAL, TEST = "train", "val", "test"
_WORDS = {
    TRAIN: "train|training|trn|trainval",
    VAL: "val|valid|validation|validate|dev",
    TEST: "test|testing|tst|eval|evaluation",
}
_BESIDE = "(?:set|split|data|dataset|folder|samples?|images?|imgs?|pictures?|photos?)"
_AROUND = rf"(?:{_BESIDE}[ _.-]*)?(?:%s)(?:[ _.-]*{_BESIDE}){{0,3}}(?:[ _.-]*(?:19|20)\d\d)?"
_SPLITS = {split: re.compile(_AROUND % words) for split, words in _WORDS.items()}

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


def ignore_notes(note: str) -> None:
    """Drop a note: the `Notify` of callers without a user."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user says of data that bring neither class names nor splits with them.

    `classes` in id order (None takes those that occur, sorted), the `separator` of two tags in a text (None
    takes `;`, `|` or `,`), and the fraction that becomes `val`, chosen by `seed`, where no split is named.
    """

    classes: tuple[str, ...] | None = None
    separator: str | None = None
    val_fraction: float = 0.1
    seed: int = 0
    notify: Notify = ignore_notes

    def __post_init__(self) -> None:
        if self.separator == "":
            raise DataError("--tags-separator is empty; give the text between two tags")
        if not 0.0 <= self.val_fraction < 1.0:
            raise DataError(f"--val-fraction is in [0, 1); got {self.val_fraction}")

    def note(self, line: str) -> None:
        """Pass a line to the user, whatever signs the names in it hold."""
        self.notify(printable(line))

    @cached_property
    def explicit(self) -> frozenset[str]:
        """The listed class names, which are always meant as they are."""
        return frozenset(map(plain, self.classes or ()))


def plain(name: str) -> str:
    """Return a name without outer spaces and with accents in one spelling (NFC), for comparison."""
    return unicodedata.normalize("NFC", name.strip())


def letters(name: str) -> str:
    """Return a name's letters and digits in lower case."""
    return re.sub(r"[\W_]", "", name.casefold())


def find_column(
    asked: str | None, usual: Iterable[str], there: Collection[str], where: str, option: str
) -> str | None:
    """Return the column asked for, else the first usual one; raises `DataError` if that one is absent."""
    if asked is None:
        by_letters = {letters(name): name for name in reversed([*there])}
        return next((by_letters[letters(name)] for name in usual if letters(name) in by_letters), None)
    if asked in there:
        return asked
    listed = f"{', '.join(there):.300}"
    raise DataError(
        f"{where} has no column '{asked}'{nearest_name(asked, there)}; there: {listed} ({option})"
    )


@lru_cache(maxsize=1024)
def usual_split(name: str) -> str | None:
    """Return `train`, `val` or `test` for a usual name of one (`Valid`, `test_set`, `train2017`)."""
    spelling = name.strip().casefold()
    return next((split for split, pattern in _SPLITS.items() if pattern.fullmatch(spelling)), None)


def split_name(name: str) -> str:
    """Return the usual name of a split, or the name itself where it is none of the usual ones."""
    return usual_split(name) or name.strip()


def split_in_file_name(stem: str) -> str | None:
    """Return the split that a data file's name tells in any of its words (`cifar10-test-00000-of-00001`)."""
    found = {split for word in re.split(r"[ _.-]+", stem) if (split := usual_split(word))}
    return found.pop() if len(found) == 1 else usual_split(stem)


def seeded_validation(groups: Iterable[Iterable[str]], options: SourceOptions) -> set[str]:
    """Choose the fraction of each group of names that is for validation.

    The choice is by a hash of each name with the seed: it does not depend on the order of the names, and few
    change sides when names are added.
    """
    chosen = set[str]()
    for names in groups:
        ordered = sorted(names, key=lambda name: hashlib.sha256(f"{options.seed}:{name}".encode()).digest())
        chosen.update(ordered[: round(options.val_fraction * len(ordered))])
    return chosen


def train_and_val(entries: Iterable[Entry], chosen: Collection[str]) -> dict[str, list[Entry]]:
    """Return entries by split: `val` holds those of the chosen ids, if there are any."""
    made: dict[str, list[Entry]] = {TRAIN: []}
    for entry in entries:
        made.setdefault(VAL if entry.id in chosen else TRAIN, []).append(entry)
    return made


def with_validation(entries: Mapping[str, list[Entry]], options: SourceOptions) -> dict[str, list[Entry]]:
    """Return the entries with a fraction of `train` as `val`, where there is a `train` and no `val`.

    The fraction is taken of the pictures of each first tag, so that rare classes keep theirs.
    """
    if TRAIN not in entries or VAL in entries:
        return dict(entries)
    groups: dict[tuple[int, ...], set[str]] = {}
    for entry in entries[TRAIN]:
        if isinstance(entry, SourceRecord):
            groups.setdefault((entry.tags or ())[:1], set()).add(entry.id)
    chosen, asked = seeded_validation(groups.values(), options), f"--val-fraction {options.val_fraction}"
    if chosen:
        options.note(f"no split 'val' is there: {len(chosen)} pictures of 'train' become it ({asked})")
    elif options.val_fraction:
        options.note(f"{asked} of 'train' is less than one picture of any class; take more")
    return {**entries, **train_and_val(entries[TRAIN], chosen)}
