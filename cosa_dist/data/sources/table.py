"""A folder of pictures and a table that names their tags.

    image,tags,split
    holiday/1.jpg,cat;dog,train

Tags are a list, or text separated by `;`, `|` or `,`, or columns of 0 and 1 named after their classes; a
cell that is itself the name of a class of `--classes` is one tag. Pictures, masks and splits are named by
further columns, where there are any. Several rows of a picture are one record with the tags of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, RecordError, nearest_name, quoted
from cosa_dist.data.sources.cell import MISSING, TagRules, text_of
from cosa_dist.data.sources.classes import TagIndex, class_names_of, plain
from cosa_dist.data.sources.flags import columns_tags, flags_found, is_numbering
from cosa_dist.data.sources.folder import IMAGE_ENDINGS, optional_mask, refuse_without_masks
from cosa_dist.data.sources.record import (
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
from cosa_dist.data.sources.rows import Row, column_names, read_rows
from cosa_dist.data.sources.split import TRAIN, VAL, seeded_validation, split_name, usual_split
from cosa_dist.data.sources.tags import TAG_COLUMNS, Tags, settled, united

_IMAGE_COLUMNS = (
    *("image", "filename", "file", "path", "filepath", "imagefile", "imagename", "imagepath", "imageid"),
    *("imageindex", "img", "imgname", "picture", "fname"),
)
"""In lower case and without blanks and signs."""
_DENIED = ("confidence", "present", "presence")
"""Columns where 0 says that the tag of the row is not there."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None takes the usual ones where they are there.

    `tags` may be several names separated by commas.
    """

    image: str | None = None
    tags: str | None = None
    split: str | None = None
    mask: str | None = None


class _Line(NamedTuple):
    """What is kept of a row beside its tags: its number, picture, mask and split."""

    number: int
    image: str
    mask: str
    split: str


class _Found(NamedTuple):
    """The columns that are read."""

    image: str
    tags: tuple[str, ...]
    split: str | None
    mask: str | None


def table_source(
    images: Path,
    table: Path,
    *,
    columns: Columns | None = None,
    masks: Path | None = None,
    classes: tuple[str, ...] | None = None,
    separator: str | None = None,
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
        separator: what is between two tags in a text; None takes `;`, `|` or `,`.
        val_share: share that is for validation where the table has no column of splits.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: a file, folder or column is not there, the table is damaged, no tag is in it, or its
            tags can be read in two ways.
    """
    if not images.is_dir():
        raise DataError(f"no folder of pictures {images}")
    rules = TagRules(classes, separator, tell)
    lines, tags, flags = _read(table, columns or Columns(), rules)
    *tags, flags = settled([*tags, flags], rules)
    lines, tags = _one_line_a_picture(_with_endings(images, lines, tell), tags, tell)
    bad = (
        f" (row {line.number}: {said})" for line, said in zip(lines, tags, strict=True) if type(said) is str
    )
    names = classes or class_names_of(tags, f"table {table}{next(bad, '')}", flags)
    info = DatasetInfo(table.stem, names)
    index = TagIndex(info.class_names)
    entries: dict[str, list[Entry]] = {}
    for line, said, split in zip(lines, tags, _splits(lines, val_share, seed, tell), strict=True):
        entries.setdefault(split, []).append(_entry(images, table, line, said, masks, index))
    refuse_without_masks(masks, entries)
    return info, entries


def _splits(lines: Sequence[_Line], val_share: float, seed: int, tell: Tell) -> list[str]:
    """Return the split of each line: the one it names, else `train`; of none, a share is `val`."""
    blank = sum(not line.split for line in lines)
    if 0 < blank < len(lines):
        tell(f"{blank} pictures name no split: they are taken as '{TRAIN}'")
    unnamed = (line.image for line in lines if blank == len(lines))
    chosen = seeded_validation(set(unnamed), val_share, seed)
    return [split_name(line.split) or (VAL if line.image in chosen else TRAIN) for line in lines]


def _read(table: Path, columns: Columns, rules: TagRules) -> tuple[list[_Line], list[Tags], Tags]:
    """Return the table's rows, the tags in each, and the columns that are classes."""
    there = column_names(table)
    if not there:
        raise DataError(f"table {table} has no rows")
    found = _columns_of(table, there, columns, rules)
    used = frozenset(filter(None, (found.image, found.split, found.mask, *found.tags)))
    lines: list[_Line] = []
    same: dict[Any, Any] = {}
    cells: dict[str, list[Any]] = {name: [] for name in found.tags}
    for number, row in read_rows(table, used):
        _refuse_open_quote(table, number, row, used)
        if isinstance(row.get(found.image), bytes | dict | list):
            raise DataError(
                f"table {table}: column '{found.image}' holds no file names; pictures in a table are "
                "read by `ingest.py hf`"
            )
        image = re.sub(r"(?:^|(?<=/))(?:\./)+", "", text_of(row.get(found.image)))
        texts = [text_of(row.get(name or "")) for name in (found.mask, found.split)]
        mask, split = ("" if text.casefold() in MISSING else text for text in texts)
        lines.append(_Line(number, image, mask, split))
        for name, column in cells.items():
            cell = row.get(name)
            # The same few texts come again and again: one object for each saves memory.
            column.append(same.setdefault(cell, cell) if isinstance(cell, str) else cell)
    if not lines:
        raise DataError(f"table {table} has no rows")
    return lines, *columns_tags(cells, rules)


def _one_line_a_picture(
    lines: Sequence[_Line], tags: Sequence[Tags], tell: Tell
) -> tuple[list[_Line], list[Tags]]:
    """Return one line for each picture, with the tags of all rows that name it.

    Rows that contradict each other leave a reason instead of tags.
    """
    rows_of: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        rows_of.setdefault(plain(line.image) or f"row {line.number}", []).append(place)
    if len(rows_of) == len(lines):
        return list(lines), list(tags)
    made, repeated = [], [rows for rows in rows_of.values() if len(rows) > 1]
    same = sum(len({frozenset(tags[place]) for place in rows}) == 1 for rows in repeated)
    first = lines[repeated[0][0]]
    tell(
        f"{len(repeated)} pictures are in several rows, such as {first.image}: their tags are united "
        f"({same} of them only repeat the same tags)"
    )
    for rows in rows_of.values():
        line, names = lines[rows[0]], tags[rows[0]]
        if len(rows) > 1:
            names = united(tags[place] for place in rows)
            splits = dict.fromkeys(split_name(lines[place].split) for place in rows if lines[place].split)
            masks = dict.fromkeys(lines[place].mask for place in rows if lines[place].mask)
            for what, said in (("splits", splits), ("masks", masks)):
                if len(said) > 1:
                    names = f"rows of this picture name several {what} ({', '.join(said):.80}); keep one"
            line = line._replace(mask=next(iter(masks), ""), split=next(iter(splits), ""))
        made.append((line, names))
    return [line for line, _ in made], [names for _, names in made]


def _refuse_open_quote(table: Path, number: int, row: Row, columns: Iterable[str]) -> None:
    """Raise `DataError` for a cell over several lines, if it is no array of numpy: it may hold many rows."""
    for name in columns:
        if not isinstance(cell := row.get(name), str) or "\n" not in cell.strip():
            continue
        if not re.fullmatch(r"\[[^,;|\t]*\]", cell.strip()):
            raise DataError(
                f"table {table}, line {number}: the cell of column '{name}' goes over several lines; "
                "close its quotation mark"
            )


def _columns_of(table: Path, there: tuple[str, ...], asked: Columns, rules: TagRules) -> _Found:
    """Return the names of the columns that there are; raises `DataError` for one that is not."""

    def column(name: str | None, usual: tuple[str, ...], option: str) -> str | None:
        if name is None:
            folded = {re.sub("[ _-]", "", other.casefold()): other for other in reversed(there)}
            return next((folded[usual_name] for usual_name in usual if usual_name in folded), None)
        if name not in there:
            near = nearest_name(name, there)
            raise DataError(
                f"table {table} has no column '{name}'{near}; there: {', '.join(there):.300} ({option})"
            )
        return name

    image = column(asked.image, _IMAGE_COLUMNS, "--image-column")
    if image is None:
        headless = any(name.lower().endswith(IMAGE_ENDINGS) for name in there)
        cure = (
            "write the columns' names into its first line"
            if headless
            else "say with --image-column which to take"
        )
        raise DataError(f"table {table} has columns {', '.join(there):.300}; {cure}")
    split = column(asked.split, ("split",), "--split-column")
    mask = column(asked.mask, ("mask",), "--mask-column")
    names = [asked.tags] if asked.tags is None or asked.tags in there else asked.tags.split(",")
    tags = tuple(
        name for part in names if (name := column(part and part.strip(), TAG_COLUMNS, "--tags-column"))
    )
    others = [name for name in there if name not in (image, split, mask, *tags)]
    split = split or _split_column(table, others, rules)
    others = [name for name in others if name != split]
    if len(tags) == 1:
        _look_at_others(table, others, rules)
    elif not tags:
        missing = f"table {table} has columns {', '.join(there):.300}; say with --tags-column which to take"
        tags = flags_found((row for _, row in read_rows(table, frozenset(others))), others, missing, rules)
    return _Found(image, tags, split, mask)


def _split_column(table: Path, others: Sequence[str], rules: TagRules) -> str | None:
    """Return the column that holds nothing but names of splits, `train` among them, whatever its own name."""
    found: dict[str, set[str | None]] = {name: set() for name in others}
    for _, row in read_rows(table, frozenset(others)) if others else ():
        for name in list(found):
            if text := text_of(row.get(name)):
                found[name].add(usual_split(text))
            if None in found[name]:
                del found[name]
        if not found:
            break
    columns = [name for name, splits in found.items() if TRAIN in splits and len(splits) > 1]
    if len(columns) > 1:
        raise DataError(
            f"columns {quoted(columns)} of {table} hold splits; say with --split-column which to take"
        )
    if not columns:
        return None
    rules.tell(f"column '{columns[0]}' holds the splits")
    return columns[0]


def _look_at_others(table: Path, others: Sequence[str], rules: TagRules) -> None:
    """Tell which columns are not read; raises `DataError` where one of them says that tags are not there."""
    for name in others:
        if name.casefold() in _DENIED:
            for number, row in read_rows(table, frozenset((name,))):
                if text_of(row.get(name)).casefold() in ("0", "0.0", "false", "no"):
                    raise DataError(
                        f"table {table}, line {number}: column '{name}' says that the tag of this row is not "
                        "there; take such rows out, and the column"
                    )
    if unread := [name for name in others if not is_numbering(name)]:
        rules.tell(f"columns that are not read: {', '.join(unread):.300}")


def _with_endings(images: Path, lines: Sequence[_Line], tell: Tell) -> list[_Line]:
    """Return the lines with the ending of the picture's file, where its name is written without."""
    known: dict[str, str] = {}
    endings = [*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS)]
    for line in lines:
        name = line.image
        if name in known or name.lower().endswith(IMAGE_ENDINGS) or unsafe_name(name):
            continue
        known[name] = next((full for end in endings if File(images, full := f"{name}{end}").exists()), name)
        if known[name] != name:
            last = known[name][len(name) :]
            endings = [last, *(end for end in endings if end != last)]  # most have the same
    if ended := next((name for name in known if known[name] != name), None):
        tell(f"pictures are named without their ending, such as {ended}: taken as {known[ended]}")
    return [line._replace(image=known.get(line.image, line.image)) for line in lines]


def _entry(images: Path, table: Path, line: _Line, names: Tags, masks: Path | None, index: TagIndex) -> Entry:
    """Return the record of one picture, or why it is left out."""
    where = f"{table.name}, row {line.number}"
    record_id = id_of(line.image) or f"row {line.number}"
    reason = unsafe_name(line.image) or unsafe_id(record_id)
    if line.mask:
        reason = reason or unsafe_name(line.mask)
    if reason is not None:
        return Rejection(record_id, reason, where)
    if isinstance(names, str):
        return Rejection(record_id, names, where)
    try:
        tags = index(names)
    except RecordError as error:
        return Rejection(record_id, str(error), where)
    mask = File(masks or images, line.mask) if line.mask else optional_mask(masks, line.image)
    return SourceRecord(record_id, File(images, line.image), mask, tags)
