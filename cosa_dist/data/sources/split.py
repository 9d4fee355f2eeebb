"""Which split a picture belongs to, where the source leaves that open."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import Entry, SourceRecord, Tell, untold

TRAIN, VAL, TEST = "train", "val", "test"
_WORDS = {
    TRAIN: "train|training|trn|trainval",
    VAL: "val|valid|validation|validate|dev",
    TEST: "test|testing|tst|eval|evaluation",
}
_BESIDE = "(?:set|split|data|dataset|folder|samples?|images?|imgs?|pictures?|photos?)"
_AROUND = rf"(?:{_BESIDE}[ _.-]*)?(?:%s)(?:[ _.-]*{_BESIDE}){{0,3}}(?:[ _.-]*(?:19|20)\d\d)?"
_SPLITS = {split: re.compile(_AROUND % words) for split, words in _WORDS.items()}


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


def check_share(val_share: float) -> float:
    """Return the validation share; raises `DataError` unless it is in [0, 1)."""
    if not 0.0 <= val_share < 1.0:
        raise DataError(f"--val-share is in [0, 1); got {val_share}")
    return val_share


def seeded_validation(names: Iterable[str], val_share: float, seed: int) -> set[str]:
    """Choose the share of `names` that is for validation.

    The choice is by a hash of each name with the seed: it does not depend on the order of the names,
    and few change sides when names are added.

    Args:
        names: what to choose from, each one once.
        val_share: share in [0, 1); the number is rounded to the nearest.
        seed: another seed is another choice.
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return set(ordered[: round(check_share(val_share) * len(ordered))])


def with_validation(
    entries: Mapping[str, list[Entry]], val_share: float, seed: int, tell: Tell = untold
) -> dict[str, list[Entry]]:
    """Return the entries with a share of `train` as `val`, where there is a `train` and no `val`.

    The share is taken of the pictures of each first tag, so that rare classes keep theirs.
    """
    check_share(val_share)
    if TRAIN not in entries or VAL in entries:
        return dict(entries)
    groups: dict[tuple[int, ...], set[str]] = {}
    for entry in entries[TRAIN]:
        if isinstance(entry, SourceRecord):
            groups.setdefault((entry.tags or ())[:1], set()).add(entry.id)
    chosen = set[str]().union(*(seeded_validation(ids, val_share, seed) for ids in groups.values()))
    if not chosen:
        if val_share:
            tell(f"--val-share {val_share} of 'train' is less than one picture of any class; take more")
        return dict(entries)
    tell(f"no split 'val' is there: {len(chosen)} pictures of 'train' become it (--val-share {val_share})")
    train = [entry for entry in entries[TRAIN] if entry.id not in chosen]
    val = [entry for entry in entries[TRAIN] if entry.id in chosen]
    return {**entries, TRAIN: train, VAL: val}
