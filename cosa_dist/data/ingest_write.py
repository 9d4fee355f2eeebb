"""Writing shards: checked records into many small Arrow files, and the `dataset.json` that lists them.

Nothing half-written is ever seen: all goes to a temporary folder beside the output, which is
renamed at the very end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features
from datasets.arrow_writer import ArrowWriter

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest_check import CheckedRecord
from cosa_dist.data.shards import DESCRIPTION, record_features

_ROWS_PER_BATCH = 32


def default_shard_count(records: int) -> int:
    """Return a number of shards between 8 and 128, about 128 records each, never more than records."""
    return max(1, min(records, 128, max(8, records // 128)))


class SplitWriter:
    """Writes one split's records in the order given; shards are filled one after the other.

    Args:
        folder: where the shards go; created.
        info: the data set (class names).
        planned: how many records there are at most; they are shared equally by the shards.
        shards: how many shards; None chooses (`default_shard_count`).
        with_context: whether records carry a context mask.
    """

    def __init__(
        self, folder: Path, info: DatasetInfo, planned: int, shards: int | None, with_context: bool
    ) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._info = info
        self._features: Features = record_features(info.class_names, with_context)
        count = min(planned, shards or default_shard_count(planned))
        self._ends = [planned * (number + 1) // count for number in range(count)]
        self._writer: ArrowWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._shard_counts: list[int] = []
        self._classes: Counter[int] = Counter()
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, record: CheckedRecord) -> None:
        """Append one record."""
        if self._writer is None:
            path = self._folder / f"{len(self._shard_counts):05d}.part"
            self._writer = ArrowWriter(path=str(path), features=self._features)
            self._shard_counts.append(0)
        row = {
            "id": record.id,
            "image": _stored(record.image),
            "mask": _stored(record.mask),
            "labels": list(record.labels),
            "width": record.width,
            "height": record.height,
            "context": _stored(record.context),
        }
        self._rows.append({name: row[name] for name in self._features})
        self._shard_counts[-1] += 1
        self._classes.update(record.labels)
        self._add_to_fingerprint(record)
        self.count += 1
        if self.count >= self._ends[len(self._shard_counts) - 1]:
            self._close_shard()
        elif len(self._rows) >= _ROWS_PER_BATCH:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Close the last shard, give all their final names, and return the split's description."""
        self._close_shard()
        total = len(self._shard_counts)
        shards = []
        for number, count in enumerate(self._shard_counts):
            name = f"shard-{number:05d}-of-{total:05d}.arrow"
            (self._folder / f"{number:05d}.part").rename(self._folder / name)
            shards.append({"file": name, "count": count})
        names = self._info.class_names
        return {
            "count": self.count,
            "fingerprint": f"sha256:{self._hash.hexdigest()}",
            "class_counts": {name: self._classes[index] for index, name in enumerate(names)},
            "shards": shards,
        }

    def _add_to_fingerprint(self, record: CheckedRecord) -> None:
        """Hash id, image, mask and tags, each with its length, so that no two contents look alike."""
        tags = ",".join(map(str, record.labels)).encode()
        for part in (record.id.encode(), record.image, record.mask, tags):
            self._hash.update(b"-" if part is None else str(len(part)).encode() + b":" + part)

    def _flush(self) -> None:
        """Write the rows held so far as one Arrow batch."""
        if self._rows and self._writer is not None:
            table = pa.Table.from_pylist(self._rows, schema=self._features.arrow_schema)
            self._writer.write_table(table)
            self._rows = []

    def _close_shard(self) -> None:
        """Finish the shard that is being written, if there is one."""
        self._flush()
        if self._writer is not None:
            self._writer.finalize()
            self._writer.close()
            self._writer = None


def _stored(data: bytes | None) -> dict[str, Any] | None:
    """Return bytes in the form of an HF image column."""
    return None if data is None else {"bytes": data, "path": None}


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes `out` when the block ends well and vanishes otherwise.

    Raises:
        DataError: `out` exists and may not be replaced (`overwrite` is off, or it holds no shards),
            or its parent cannot be written to.
    """
    _check_output(out, overwrite)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"cannot make a folder in {out.parent}: {error.strerror}") from error
    try:
        yield partial
        _check_output(out, overwrite)
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise `DataError` if `out` holds something that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise DataError(f"{out} exists and is not a shard folder; choose another output")
    if not overwrite:
        raise DataError(f"{out} exists already; choose another output or pass --overwrite")
