"""A folder of pictures and a table that names their tags.

    image,tags,split
    holiday/1.jpg,cat;dog,train

Tags are a list, or text separated by `;`, `|` or `,`; a cell that is itself the name of a class of
`--classes` is one tag. Pictures, masks and splits are named by further columns, where there are any.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, RecordError, nearest_name
from cosa_dist.data.source_classes import TagIndex, class_names_of, plain
from cosa_dist.data.source_folder import optional_mask, refuse_without_masks
from cosa_dist.data.source_record import (
    Entry,
    File,
    Rejection,
    SourceRecord,
    Tell,
    id_of,
    unsafe_id,
    unsafe_name,
    untold,
)
from cosa_dist.data.source_rows import Row, column_names, read_rows
from cosa_dist.data.source_split import TRAIN, VAL, seeded_validation, split_name

_IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path")
_TAG_COLUMNS = ("tags", "labels", "tag", "label", "classes", "class")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None takes the usual ones where they are there."""

    image: str | None = None
    tags: str | None = None
    split: str | None = None
    mask: str | None = None


class _Line(NamedTuple):
    """What is kept of a row: its number, picture, mask, tags (or why they cannot be read), and split."""

    number: int
    image: str
    mask: str
    tags: tuple[str, ...] | str
    split: str


def table_source(
    images: Path,
    table: Path,
    *,
    columns: Columns | None = None,
    masks: Path | None = None,
    classes: tuple[str, ...] | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    tell: Tell = untold,
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a folder of pictures with a table of tags; return the data set and its entries by split.

    Args:
        images: the folder that the table's picture names lie in.
        table: see `read_rows`.
        columns: their names.
        masks: the folder of masks; those of a mask column, or the pictures' names ending in `.png`.
        classes: class names in id order; None takes those that occur, sorted.
        val_share: share that is for validation where the table has no column of splits.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: a file, folder or column is not there, the table is damaged, or no tag is in it.
    """
    if not images.is_dir():
        raise DataError(f"no folder of pictures {images}")
    lines = list(_lines(table, columns or Columns(), classes))
    if not lines:
        raise DataError(f"table {table} has no rows")
    known = (line.tags for line in lines if isinstance(line.tags, tuple))
    info = DatasetInfo(table.stem, classes or class_names_of(known, f"table {table}"))
    index = TagIndex(info.class_names)
    chosen = set[str]()
    if not any(line.split for line in lines):
        chosen = seeded_validation({line.image for line in lines}, val_share, seed)
    entries: dict[str, list[Entry]] = {}
    for line in lines:
        split = split_name(line.split) or (VAL if line.image in chosen else TRAIN)
        entries.setdefault(split, []).append(_entry(images, table, line, masks, index))
    refuse_without_masks(masks, entries)
    return info, entries


def tags_of_cell(cell: Any, classes: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the tags in a cell: of a list its items, of text the parts between separators.

    Raises:
        RecordError: the cell holds something else.
    """
    if cell is None:
        return ()
    if isinstance(cell, str):
        if plain(cell) in classes:
            return (plain(cell),)
        parts: Iterable[Any] = re.split(r"[;|]" if re.search(r"[;|]", cell) else ",", cell)
    elif isinstance(cell, int | float) and cell == int(cell):
        parts = (cell,)
    else:
        parts = cell
    if not isinstance(parts, list | tuple) or any(isinstance(part, dict | list) for part in parts):
        raise RecordError(f"tags are neither text nor a list of names: {cell!r:.60}; mend the row")
    words = (str(int(part)) if isinstance(part, float) and part == int(part) else str(part) for part in parts)
    tags = tuple(dict.fromkeys(word for part in words if (word := plain(part))))
    if any(unicodedata.category(character) == "Cc" for tag in tags for character in tag):
        raise RecordError(f"tags hold control characters: {cell!r:.60}; mend the row")
    return tags


def _lines(table: Path, columns: Columns, classes: tuple[str, ...] | None) -> Iterator[_Line]:
    """Yield what is kept of the table's rows."""
    there = column_names(table)
    if not there:
        return
    found = _columns_of(table, there, columns)
    names = frozenset(map(plain, classes or ()))
    used = frozenset(filter(None, (found.image, found.tags, found.split, found.mask)))
    for number, row in read_rows(table, used):
        _refuse_open_quote(table, number, row, used)
        tags: tuple[str, ...] | str
        try:
            tags = tags_of_cell(row.get(found.tags or ""), names)
        except (RecordError, ValueError, OverflowError) as error:
            tags = str(error)
        image, mask, split = (_text(row.get(name or "")) for name in (found.image, found.mask, found.split))
        yield _Line(number, image, mask, tags, split)


def _refuse_open_quote(table: Path, number: int, row: Row, columns: Iterable[str]) -> None:
    """Raise `DataError` for a cell over several lines: it may have swallowed many rows."""
    for name in columns:
        if isinstance(cell := row.get(name), str) and "\n" in cell.strip():
            raise DataError(
                f"table {table}, line {number}: the cell of column '{name}' goes over several lines; "
                "close its quotation mark"
            )


def _columns_of(table: Path, there: tuple[str, ...], asked: Columns) -> Columns:
    """Return the names of the columns that there are; raises `DataError` for one that is not."""

    def column(name: str | None, usual: tuple[str, ...], option: str) -> str | None:
        if name is None:
            return next((usual_name for usual_name in usual if usual_name in there), None)
        if name not in there:
            near = nearest_name(name, there)
            raise DataError(
                f"table {table} has no column '{name}'{near}; there: {', '.join(there)} ({option})"
            )
        return name

    found = Columns(
        image=column(asked.image, _IMAGE_COLUMNS, "--image-column"),
        tags=column(asked.tags, _TAG_COLUMNS, "--tags-column"),
        split=column(asked.split, ("split",), "--split-column"),
        mask=column(asked.mask, ("mask",), "--mask-column"),
    )
    for name, option in ((found.image, "--image-column"), (found.tags, "--tags-column")):
        if name is None:
            raise DataError(f"table {table} has columns {', '.join(there)}; say with {option} which to take")
    return found


def _entry(images: Path, table: Path, line: _Line, masks: Path | None, index: TagIndex) -> Entry:
    """Return the record of one row, or why it is left out."""
    where = f"{table.name}, row {line.number}"
    record_id = id_of(line.image) or f"row {line.number}"
    reason = unsafe_name(line.image) or unsafe_id(record_id)
    if line.mask:
        reason = reason or unsafe_name(line.mask)
    if reason is not None:
        return Rejection(record_id, reason, where)
    if isinstance(line.tags, str):
        return Rejection(record_id, line.tags, where)
    try:
        tags = index(line.tags)
    except RecordError as error:
        return Rejection(record_id, str(error), where)
    mask = File(masks or images, line.mask) if line.mask else optional_mask(masks, line.image)
    return SourceRecord(record_id, File(images, line.image), mask, tags)


def _text(cell: Any) -> str:
    """Return a cell as text without outer spaces."""
    return "" if cell is None else str(cell).strip()
