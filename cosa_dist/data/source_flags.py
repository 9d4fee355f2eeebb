"""Columns of 0 and 1, each named after its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cosa_dist.data.errors import DataError
from cosa_dist.data.source_cell import TagRules, truth
from cosa_dist.data.source_classes import plain
from cosa_dist.data.source_tags import Tags, by_spelling, quoted, spelling

_NUMBERING = re.compile(r"unnamed: \d+|__index_level_\d+__|index|id|image_id")


def is_numbering(column: str) -> bool:
    """Whether a column's name says that it numbers the rows."""
    return _NUMBERING.fullmatch(column.strip().casefold()) is not None


def flag_columns(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> dict[str, bool]:
    """Return those of the columns that hold only 0 and 1, -1, true, false or blanks, and if any is not."""
    values: dict[str, set[bool | None]] = {name: set() for name in columns}
    for row in rows:
        for name in list(values):
            try:
                values[name].add(truth(row.get(name), ticks=True))
            except ValueError:
                del values[name]
    return {name: bool(found - {None}) for name, found in values.items()}


def all_flags(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], rules: TagRules) -> bool:
    """Return whether several columns of tags hold 0 and 1, each for the class of its name.

    Raises:
        DataError: some of them do.
    """
    found = flag_columns(rows, columns)
    flags = tuple(found) if any(found.values()) else ()
    if flags and len(flags) < len(columns):
        raise DataError(
            f"of the columns {quoted(columns)} only {quoted(flags)} hold 0 and 1; name columns of one kind"
        )
    if flags:
        tell_flags(flags, rules)
    return bool(flags)


def tell_flags(columns: Sequence[str], rules: TagRules) -> None:
    """Tell the user which columns are classes."""
    rules.tell(f"columns {quoted(columns)} hold 0 and 1: each is a class, there where it holds 1")


def flags_found(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], missing: str, rules: TagRules
) -> tuple[str, ...]:
    """Return the columns of 0 and 1 that are the tags of a table without a column of tags.

    They are those that are classes; all of them where no classes are listed.

    Raises:
        DataError: `missing`, where some columns hold something else.
    """
    flags = tuple(name for name, holds in flag_columns(rows, columns).items() if holds)
    listed = by_spelling(rules.explicit)
    found = tuple(name for name in flags if spelling(name) in listed)
    if not found:
        numbering = {name for name in columns if is_numbering(name)}
        found = tuple(name for name in flags if name not in numbering)
        if not found or set(columns) - numbering - set(flags):
            raise DataError(missing + (f" (of 0 and 1: {','.join(flags):.200})" if flags else ""))
    return found


def flag_tags(row: Mapping[str, Any], columns: Iterable[str]) -> Tags:
    """Return the names of the columns in which a row holds 1."""
    return tuple(plain(name) for name in columns if truth(row.get(name), ticks=True))
