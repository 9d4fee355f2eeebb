"""A folder of pictures and a table that names their tags.

    image,tags,split
    holiday/1.jpg,cat;dog,train

Tags are a list, or text separated by `;`, `|` or `,`, or columns of 0 and 1 named after their classes; a
cell that is itself the name of a class of `--classes` is one tag. Pictures, masks and splits are named by
further columns, where there are any. Several rows of a picture are one record with the tags of all.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, Rejection, quoted
from cosa_dist.data.sources.classes import Indices, class_names_of, tag_indices
from cosa_dist.data.sources.folder import IMAGE_ENDINGS, optional_mask, refuse_without_masks
from cosa_dist.data.sources.record import (
    TRAIN,
    VAL,
    Entry,
    File,
    Notify,
    SourceOptions,
    SourceRecord,
    Tags,
    find_column,
    id_of,
    plain,
    read_text,
    seeded_validation,
    split_name,
    unsafe_id,
    unsafe_name,
    usual_split,
)
from cosa_dist.data.sources.tags import (
    MISSING,
    TAG_COLUMNS,
    columns_tags,
    flags_found,
    is_numbering,
    settled,
    text_of,
    united,
)

_IMAGE_COLUMNS = (
    *("image", "filename", "file", "path", "filepath", "imagefile", "imagename", "imagepath", "imageid"),
    *("imageindex", "img", "imgname", "picture", "fname"),
)
_DENIED = ("confidence", "present", "presence")
"""Columns where 0 says that the tag of the row is not there."""
_KINDS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
_HEAVY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, `tags` perhaps several separated by commas; None takes the usual ones."""

    image: str | None = None
    tags: str | None = None
    split: str | None = None
    mask: str | None = None


class _Line(NamedTuple):
    """What is kept of a row."""

    number: int
    tags: Tags
    image: str
    mask: str
    split: str


@dataclass(frozen=True)
class Table:
    """A table's cells by column, and the number of each row: the line in the file, or the place from 1."""

    path: Path
    numbers: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def append(self, number: int, row: dict[str, Any]) -> None:
        """Take a row, whose cells may be of other columns than those before."""
        for name in row:
            if name and name not in self.columns:
                self.columns[name] = [None] * len(self.numbers)
        self.numbers.append(number)
        for name, cells in self.columns.items():
            cell = row.get(name)
            # The same few texts come again and again: one object for each saves memory.
            cells.append(sys.intern(cell) if isinstance(cell, str) else cell)


def table_source(
    images: Path,
    table: Path,
    options: SourceOptions,
    *,
    columns: Columns | None = None,
    masks: Path | None = None,
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a folder of pictures with a table of tags; return the data set and its entries by split.

    Masks are those of a mask column in the folder `masks`, or have there the pictures' names ending in
    `.png`. Raises `DataError` if a file, folder or column is not there, the table is damaged, no tag is in
    it, or its tags can be read in two ways.
    """
    if not images.is_dir():
        raise DataError(f"no folder of pictures {images}")
    read = read_table(table)
    image, tag_columns, split, mask = _columns_of(read, columns or Columns(), options)
    _refuse_open_quotes(read, filter(None, (image, split, mask, *tag_columns)))
    tags, flags = columns_tags({name: read.columns[name] for name in tag_columns}, options)
    *tags, flags = settled([*tags, flags], options)
    lines = _with_endings(images, _lines(read, tags, image, mask, split), options.note)
    lines = _one_line_a_picture(lines, options.note)
    bad = (f" (row {line.number}: {line.tags})" for line in lines if isinstance(line.tags, str))
    where = f"table {table}{next(bad, '')}"
    names = options.classes or class_names_of((line.tags for line in lines), where, flags)
    info, indices = DatasetInfo(table.stem, names), tag_indices(names)
    blank = sum(not line.split for line in lines)
    if 0 < blank < len(lines):
        options.note(f"{blank} pictures name no split: they are taken as '{TRAIN}'")
    chosen = seeded_validation([{line.image for line in lines if blank == len(lines)}], options)
    entries: dict[str, list[Entry]] = {}
    for line in lines:
        of_line = split_name(line.split) or (VAL if line.image in chosen else TRAIN)
        entries.setdefault(of_line, []).append(_entry(images, table, line, masks, indices))
    refuse_without_masks(masks, entries)
    return info, entries


def _columns_of(
    table: Table, asked: Columns, options: SourceOptions
) -> tuple[str, tuple[str, ...], str | None, str | None]:
    """Return the columns of pictures, tags, splits and masks; raises `DataError` for one that is absent."""
    there, where = list(table.columns), f"table {table.path}"
    has = f"{where} has columns {', '.join(there):.300}"
    image = find_column(asked.image, _IMAGE_COLUMNS, there, where, "--image-column")
    if image is None:
        cure = "say with --image-column which (pictures inside a table are read by `ingest.py hf`)"
        if any(name.lower().endswith(IMAGE_ENDINGS) for name in there):
            cure = "write the columns' names into its first line"
        raise DataError(f"{has}; {cure}")
    split = find_column(asked.split, ("split",), there, where, "--split-column")
    mask = find_column(asked.mask, ("mask",), there, where, "--mask-column")
    parts = [asked.tags] if asked.tags is None or asked.tags in there else asked.tags.split(",")
    named = (find_column(p and p.strip(), TAG_COLUMNS, there, where, "--tags-column") for p in parts)
    tags = tuple(name for name in named if name)
    others = [name for name in there if name not in (image, split, mask, *tags)]
    split = split or _split_column(table, others, options.note)
    others = [name for name in others if name != split]
    if not tags:
        missing = f"{has}; say with --tags-column which to take"
        tags = flags_found({name: table.columns[name] for name in others}, missing, options)
    elif len(tags) == 1:
        _look_at_others(table, others, options.note)
    return image, tags, split, mask


def _split_column(table: Table, others: Sequence[str], notify: Notify) -> str | None:
    """Return the column that holds nothing but names of splits, `train` among them, whatever its own name."""
    columns = []
    for name in others:
        splits = set[str | None]()
        for text in filter(None, map(text_of, table.columns[name])):
            splits.add(usual_split(text))
            if None in splits:
                break
        if None not in splits and TRAIN in splits and len(splits) > 1:
            columns.append(name)
    if len(columns) > 1:
        cure = "say with --split-column which to take"
        raise DataError(f"columns {quoted(columns)} of {table.path} hold splits; {cure}")
    for name in columns:
        notify(f"column '{name}' holds the splits")
    return columns[0] if columns else None


def _look_at_others(table: Table, others: Sequence[str], notify: Notify) -> None:
    """Note which columns are not read; raises `DataError` where one of them says that tags are not there."""
    for name in (name for name in others if name.casefold() in _DENIED):
        for number, cell in zip(table.numbers, table.columns[name], strict=True):
            if text_of(cell).casefold() in ("0", "0.0", "false", "no"):
                said = f"table {table.path}, line {number}: column '{name}' says that the tag is not there"
                raise DataError(f"{said}; take such rows out, and the column")
    if unread := [name for name in others if not is_numbering(name)]:
        notify(f"columns that are not read: {', '.join(unread):.300}")


def _refuse_open_quotes(table: Table, read: Iterable[str]) -> None:
    """Raise `DataError` for a cell over several lines: it may hold many rows."""
    for name in read:
        for number, cell in zip(table.numbers, table.columns[name], strict=True):
            several = isinstance(cell, str) and "\n" in cell.strip()
            if several and not re.fullmatch(r"\[[^,;|\t]*\]", cell.strip()):  # an array of numpy
                said = f"the cell of column '{name}' goes over several lines; close its quotation mark"
                raise DataError(f"table {table.path}, line {number}: {said}")


def _lines(table: Table, tags: Sequence[Tags], *columns: str | None) -> list[_Line]:
    blank = [""] * len(table.numbers)
    texts = (list(map(text_of, table.columns[name])) if name else blank for name in columns)
    lines = []
    for number, said, image, *others in zip(table.numbers, tags, *texts, strict=True):
        mask, split = ("" if text.casefold() in MISSING else text for text in others)
        lines.append(_Line(number, said, re.sub(r"(?:^|(?<=/))(?:\./)+", "", image), mask, split))
    return lines


def _with_endings(images: Path, lines: Sequence[_Line], notify: Notify) -> list[_Line]:
    known: dict[str, str] = {}
    endings = [*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS)]
    for line in lines:
        name = line.image
        if name in known or name.lower().endswith(IMAGE_ENDINGS) or unsafe_name(name):
            continue
        ending = next((end for end in endings if File(images, f"{name}{end}").exists()), "")
        known[name] = f"{name}{ending}"
        endings.sort(key=lambda end: end != ending)  # most have the same
    if ended := next((name for name in known if known[name] != name), None):
        notify(f"pictures are named without their ending, such as {ended}: taken as {known[ended]}")
    return [line._replace(image=known.get(line.image, line.image)) for line in lines]


def _one_line_a_picture(lines: Sequence[_Line], notify: Notify) -> list[_Line]:
    """Return one line for each picture, with the tags of all rows that name it."""
    groups: dict[str, list[_Line]] = {}
    for line in lines:
        groups.setdefault(plain(line.image) or f"row {line.number}", []).append(line)
    if repeated := [own for own in groups.values() if len(own) > 1]:
        same = sum(len({frozenset(line.tags) for line in own}) == 1 for own in repeated)
        notify(
            f"{len(repeated)} pictures are in several rows, such as {repeated[0][0].image}: their tags are "
            f"united ({same} of them only repeat the same tags)"
        )
    return [own[0] if len(own) == 1 else _united(own) for own in groups.values()]


def _united(own: Sequence[_Line]) -> _Line:
    """Return the rows of a picture as one; if they contradict each other, the reason stands for its tags."""
    tags = united(line.tags for line in own)
    splits = list(dict.fromkeys(split_name(line.split) for line in own if line.split))
    masks = list(dict.fromkeys(line.mask for line in own if line.mask))
    for what, said in (("splits", splits), ("masks", masks)):
        if len(said) > 1:
            tags = f"rows of this picture name several {what} ({', '.join(said):.80}); keep one"
    return own[0]._replace(tags=tags, mask="".join(masks[:1]), split="".join(splits[:1]))


def _entry(images: Path, table: Path, line: _Line, masks: Path | None, indices: Indices) -> Entry:
    record_id, tags = id_of(line.image) or f"row {line.number}", indices(line.tags)
    reason = unsafe_name(line.image) or unsafe_id(record_id) or (line.mask and unsafe_name(line.mask))
    if reason or isinstance(tags, str):
        return Rejection(record_id, reason or str(tags), f"{table.name}, row {line.number}")
    mask = File(masks or images, line.mask) if line.mask else optional_mask(masks, line.image)
    return SourceRecord(record_id, File(images, line.image), mask, tags)


def read_table(path: Path) -> Table:
    """Read a `.csv`, `.tsv`, `.json` (a list of objects), `.jsonl` or `.parquet` file.

    Raises `DataError` if the file is absent, of another kind, not UTF-8, damaged (with the line) or empty.
    """
    ending, table = path.suffix.lower(), Table(path)
    if not path.is_file():
        raise DataError(f"no table {path}")
    if ending not in _KINDS:
        cure = "save a spreadsheet as CSV, unpack what is compressed"
        raise DataError(f"table {path} is of an unknown kind; known: {', '.join(_KINDS)} ({cure})")
    if ending == ".parquet":
        table = _parquet(path)
    else:
        readers = {".json": _json_rows, ".jsonl": _json_lines, ".ndjson": _json_lines}
        for number, row in readers.get(ending, _csv_rows)(path, read_text(path, "table", "")):
            if not isinstance(row, dict):
                raise DataError(f"table {path}, row {number} is not an object with named columns")
            table.append(number, row)
    if not table.numbers:
        raise DataError(f"table {path} has no rows")
    return table


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a CSV file, separated by whichever of `, ; tab |` its header has most of."""
    opened = io.StringIO(text)
    header = opened.readline()
    said = re.fullmatch(r"sep=(.)\s*", header)  # Excel's own line, which is no row
    separator = said[1] if said else max(",;\t|", key=header.count)
    if not said:
        opened.seek(0)
    rows = csv.reader(opened, delimiter=separator, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if twice := [name for name, number in Counter(names).items() if name and number > 1]:
            raise DataError(f"table {path} has two columns '{twice[0]}'; rename one of them")
        for row in rows:
            if any(cell.strip() for cell in row[len(names) :]):
                cure = "put tags with commas into quotation marks"
                more = f"line {rows.line_num} has more cells than the header has names"
                raise DataError(f"table {path}, {more}; {cure}")
            cells = {name: cell for name, cell in zip_longest(names, row, fillvalue="") if name}
            if any(cell.strip() for cell in cells.values()):  # spreadsheets end in `;;;`
                yield rows.line_num, cells
    except csv.Error as error:
        raise DataError(f"table {path}, line {rows.line_num}: {error}; mend the line") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON list."""
    content = _loaded(text, f"table {path}", "JSON lines end in .jsonl")
    if not isinstance(content, list):
        raise DataError(f"table {path} is not a list of objects, one a picture; write [{{...}}, {{...}}]")
    yield from enumerate(content, start=1)


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a file with one on each line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _loaded(line, f"table {path}, line {number}", "mend it")


def _loaded(text: str, where: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}; {cure}") from error


def _parquet(path: Path) -> Table:
    """Return the rows of a Parquet file without the columns of bytes or of named parts."""
    try:
        with pq.ParquetFile(path) as opened:
            schema, count = opened.schema_arrow, opened.metadata.num_rows
            wanted = [column.name for column in schema if not any(kind(column.type) for kind in _HEAVY)]
            columns = opened.read(wanted).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"table {path} is not readable Parquet ({error}); write it again") from error
    return Table(path, list(range(1, count + 1)), columns)
