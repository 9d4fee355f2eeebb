"""Several columns of tags together, among them columns of 0 and 1, each named after its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from cosa_dist.data.errors import DataError, quoted
from cosa_dist.data.sources.cell import NUMBER, TagRules, truth
from cosa_dist.data.sources.classes import plain
from cosa_dist.data.sources.tags import Tags, by_spelling, column_tags, spelling, united

_NUMBERING = re.compile(r"unnamed: \d+|__index_level_\d+__|index|id|image_id")


def is_numbering(column: str) -> bool:
    """Whether a column's name says that it numbers the rows."""
    return _NUMBERING.fullmatch(column.strip().casefold()) is not None


def columns_tags(columns: Mapping[str, Sequence[Any]], rules: TagRules) -> tuple[list[Tags], Tags]:
    """Return the tags in each row of one or several columns, and the classes that columns of 0 and 1 name.

    Raises:
        DataError: as `column_tags`; or some columns hold 0 and 1 and others do not, or several hold
            numbers only: of classes, or how often each column's class is there.
    """
    names = tuple(columns)
    if len(names) == 1:
        return column_tags(columns[names[0]], names[0], rules), ()
    rows = (dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    flags = flag_columns(rows, names)
    if any(flags.values()):
        if len(flags) < len(names):
            raise DataError(
                f"of the columns {quoted(names)} only {quoted(tuple(flags))} hold 0 and 1; name columns of "
                "one kind"
            )
        rules.tell(f"columns {quoted(names)} hold 0 and 1: each is a class, shown where it is 1")
        classes = tuple(map(plain, names))
        return [
            tuple(name for name, cell in zip(classes, cells, strict=True) if truth(cell, ticks=True))
            for cells in zip(*columns.values(), strict=True)
        ], classes
    read = [column_tags(cells, name, rules, alone=False) for name, cells in columns.items()]
    found = {name for tags in chain(*read) if isinstance(tags, tuple) for name in tags}
    if found - rules.explicit and all(map(NUMBER.fullmatch, found)):
        raise DataError(
            f"columns {quoted(names)} hold numbers other than 0 and 1: write 1 where its class "
            "is there, or list the numbers in --classes if they are classes"
        )
    return [united(parts) for parts in zip(*read, strict=True)], ()


def flag_columns(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> dict[str, bool]:
    """Return those of the columns that hold only 0 and 1, -1, true, false or blanks, and if any is not."""
    values: dict[str, set[bool | None]] = {name: set() for name in columns}
    for row in rows:
        for name in list(values):
            try:
                values[name].add(truth(row.get(name), ticks=True))
            except (ValueError, TypeError):
                del values[name]
    return {name: bool(found - {None}) for name, found in values.items()}


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
