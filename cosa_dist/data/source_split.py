"""Which split a picture belongs to, where the source leaves that open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cosa_dist.data.errors import DataError

TRAIN, VAL = "train", "val"
_OTHER_NAMES = {"training": TRAIN, "validation": VAL, "valid": VAL, "dev": VAL, "testing": "test"}


def split_name(name: str) -> str:
    """Return the usual name of a split: `validation` and `valid` are `val`, and so on."""
    return _OTHER_NAMES.get(name.strip().lower(), name.strip())


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
