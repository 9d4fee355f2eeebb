"""Rows of a table file, CSV, JSON, JSON lines or Parquet alike, as dictionaries."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cosa_dist.data.errors import DataError

Row = dict[str, Any]
_ROWS_AT_ONCE = 1024
_BEYOND = "\0beyond"
_JSON = (".json", ".jsonl", ".ndjson")


def read_rows(path: Path, columns: frozenset[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table with their numbers: the line in the file, or the place from 1.

    Args:
        path: a file that ends in `.csv`, `.tsv`, `.json` (a list of objects), `.jsonl` or `.parquet`.
        columns: the only columns that are read, where the format can leave out the others.

    Raises:
        DataError: the file is absent, of another kind, not UTF-8, or damaged (with the line).
    """
    readers = {
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".txt": _csv_rows,
        ".json": _json_rows,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
    if not path.is_file():
        raise DataError(f"no table {path}")
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    if ending not in readers:
        known = ", ".join((*readers, ".parquet"))
        raise DataError(
            f"table {path} is of an unknown kind; known: {known} "
            "(save a spreadsheet as CSV, unpack what is compressed)"
        )
    try:
        yield from readers[ending](path)
    except UnicodeDecodeError as error:
        raise DataError(f"table {path} is not UTF-8 text; save it as UTF-8") from error


def column_names(path: Path) -> tuple[str, ...]:
    """Return the names of a table's columns; in JSON a row may leave some of them out.

    Raises:
        DataError: as `read_rows`.
    """
    if path.suffix.lower() == ".parquet" and path.is_file():
        try:
            return tuple(pq.read_schema(path).names)
        except (OSError, ValueError) as error:
            raise DataError(f"table {path} is not readable Parquet ({error}); write it again") from error
    names: dict[str, None] = {}
    for _, row in read_rows(path):
        names.update(dict.fromkeys(row))
        if path.suffix.lower() not in _JSON:
            break
    return tuple(name for name in names if name)


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV file, separated by whichever of `, ; tab |` its header has most of."""
    with path.open(encoding="utf-8-sig", newline="") as opened:
        header = opened.readline()
        said = re.fullmatch(r"sep=(.)\s*", header)  # Excel's own line, which is no row
        separator = said[1] if said else max(",;\t|", key=header.count)
        if not said:
            opened.seek(0)
        rows = csv.DictReader(opened, restkey=_BEYOND, delimiter=separator, skipinitialspace=True)
        try:
            names = Counter(name.strip() for name in rows.fieldnames or ())
            if twice := [name for name, number in names.items() if name and number > 1]:
                raise DataError(f"table {path} has two columns '{twice[0]}'; rename one of them")
            for row in rows:
                if any(cell.strip() for cell in row.get(_BEYOND) or ()):
                    raise DataError(
                        f"table {path}, line {rows.line_num} has more cells than the header has names; "
                        "put tags with commas into quotation marks"
                    )
                # Cells of columns without a name belong to nothing.
                named = {name: row[key] for key in row if key != _BEYOND and (name := key.strip())}
                if any(cell and cell.strip() for cell in named.values()):  # spreadsheets end in `;;;`
                    yield rows.line_num, named
        except csv.Error as error:
            raise DataError(f"table {path}, line {rows.line_num}: {error}; mend the line") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a JSON list."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"table {path} is not JSON: {error}; JSON lines end in .jsonl") from error
    except RecursionError as error:
        raise DataError(f"table {path} is nested too deeply to be a list of objects") from error
    if not isinstance(content, list):
        raise DataError(f"table {path} is not a list of objects, one a picture; write [{{...}}, {{...}}]")
    for number, row in enumerate(content, start=1):
        yield number, _object(path, number, row)


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a file with one on each line; empty lines are passed over."""
    with path.open(encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"table {path}, line {number} is not JSON: {error.msg}; mend it") from error
            except RecursionError as error:
                raise DataError(f"table {path}, line {number} is nested too deeply; mend it") from error
            yield number, _object(path, number, row)


def _parquet_rows(path: Path, columns: frozenset[str] | None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a Parquet file, a few at a time."""
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            wanted = [name for name in table.schema_arrow.names if columns is None or name in columns]
            if not wanted:
                raise DataError(f"table {path} has columns {', '.join(table.schema_arrow.names)} only")
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"table {path} is not readable Parquet ({error}); write it again") from error


def _object(path: Path, number: int, row: object) -> Row:
    """Return a row that is an object; raises `DataError` otherwise."""
    if not isinstance(row, dict):
        raise DataError(f"table {path}, row {number} is not an object with named columns")
    return row
