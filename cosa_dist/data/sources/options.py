"""What users say of their own data, and the split of a picture where the source leaves that open."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cosa_dist.data.errors import DataError, nearest_name, printable
from cosa_dist.data.sources.record import Entry, SourceRecord

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
