"""Table files as columns: CSV, JSON, JSON lines and Parquet alike."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import read_text

_KINDS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
_HEAVY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)


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
        text = read_text(path, "table", "")
        readers = {".json": _json_rows, ".jsonl": _json_lines, ".ndjson": _json_lines}
        for number, row in readers.get(ending, _csv_rows)(f"table {path}", text):
            if not isinstance(row, dict):
                raise DataError(f"table {path}, row {number} is not an object with named columns")
            table.append(number, row)
    if not table.numbers:
        raise DataError(f"table {path} has no rows")
    return table


def _csv_rows(table: str, text: str) -> Iterator[tuple[int, Any]]:
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
            raise DataError(f"{table} has two columns '{twice[0]}'; rename one of them")
        for row in rows:
            if any(cell.strip() for cell in row[len(names) :]):
                cure = "put tags with commas into quotation marks"
                raise DataError(
                    f"{table}, line {rows.line_num} has more cells than the header has names; {cure}"
                )
            cells = {name: cell for name, cell in zip(names, row, strict=False) if name}
            if any(cell.strip() for cell in cells.values()):  # spreadsheets end in `;;;`
                yield rows.line_num, cells
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.line_num}: {error}; mend the line") from error


def _json_rows(table: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON list."""
    content = _loaded(text, table, "JSON lines end in .jsonl")
    if not isinstance(content, list):
        raise DataError(f"{table} is not a list of objects, one a picture; write [{{...}}, {{...}}]")
    yield from enumerate(content, start=1)


def _json_lines(table: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a file with one on each line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _loaded(line, f"{table}, line {number}", "mend it")


def _loaded(text: str, where: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}; {cure}") from error


def _parquet(path: Path) -> Table:
    """Return the rows of a Parquet file; for cells of bytes or of named parts empty bytes stand in."""
    try:
        with pq.ParquetFile(path) as opened:
            schema, count = opened.schema_arrow, opened.metadata.num_rows
            wanted = [column.name for column in schema if not any(kind(column.type) for kind in _HEAVY)]
            columns = {name: [b""] * count for name in schema.names} | opened.read(wanted).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"table {path} is not readable Parquet ({error}); write it again") from error
    return Table(path, list(range(1, count + 1)), columns)
