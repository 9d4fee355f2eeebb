"""The errors of this package: each message is one line that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def printable(text: str) -> str:
    """A text with its control characters as escapes: names out of files stay on one line."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text
    )


class DataError(ValueError):
    """A data set, a shard folder or a setting that cannot be used as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RecordError(DataError):
    """One record that cannot be read: its image or mask is damaged or not what it should be."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An entry that is left out: why, what to do, and in which file; `by_rule` means no mistake."""

    id: str
    reason: str
    where: str = ""
    by_rule: bool = False

    @property
    def file_note(self) -> str:
        """The file in brackets, or nothing."""
        return f" ({self.where})" if self.where else ""


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the choice nearest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def quoted(names: Sequence[str], most: int = 5) -> str:
    """Up to `most` names in quotation marks, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name!r:.60}" for name in names[:most]) + more
