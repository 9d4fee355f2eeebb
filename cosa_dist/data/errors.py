"""The errors of this package: each message is one line that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """A data set, a shard folder or a setting that cannot be used as it is."""


class RecordError(DataError):
    """One record that cannot be read: its image or mask is damaged or not what it should be."""


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice nearest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
