"""Writes the rows of one shard to an Arrow file, a few at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features
from datasets.arrow_writer import ArrowWriter

_ROWS_PER_BATCH = 32


class RowWriter:
    """Writes rows with the columns of `features`; without rows there is no file."""

    def __init__(self, path: Path, features: Features) -> None:
        self._path = path
        self._features = features
        self._writer: ArrowWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row; columns that are not among the features are left out."""
        self._rows.append({name: row[name] for name in self._features})
        if len(self._rows) >= _ROWS_PER_BATCH:
            self._flush()

    def finish(self) -> int:
        """Close the file; returns its size in bytes."""
        self._flush()
        if self._writer is None:
            return 0
        self._writer.finalize()
        self._writer.close()
        return self._path.stat().st_size

    def _flush(self) -> None:
        """Write the rows held so far as one Arrow batch."""
        if not self._rows:
            return
        if self._writer is None:
            self._writer = ArrowWriter(path=str(self._path), features=self._features)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._features.arrow_schema))
        self._rows = []


def stored(data: bytes | None) -> dict[str, Any] | None:
    """Bytes in the form of an HF image column."""
    return None if data is None else {"bytes": data, "path": None}
