"""One record's way in: read it, decode it completely, check it, or say why it is left out.

Pictures keep the bytes of their file; masks become (or stay) 8-bit grey-level PNGs. Everything here
is a function of one record, so that several processes can share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import as_grey_png, decode_image, decode_mask
from cosa_dist.data.errors import RecordError
from cosa_dist.data.ingest_sources import Entry, Rejection, SourceRecord


@dataclass(frozen=True)
class CheckedRecord:
    """One record as it goes into a shard; `labels` are sorted 0-based foreground indices."""

    id: str
    image: bytes
    mask: bytes | None
    labels: tuple[int, ...]
    width: int
    height: int
    context: bytes | None


Result = CheckedRecord | Rejection
"""What checking makes of an entry."""


def check_entry(entry: Entry, num_foreground: int) -> Result:
    """Check a record and pass a rejection through (see `check_record`)."""
    return entry if isinstance(entry, Rejection) else check_record(entry, num_foreground)


def check_record(record: SourceRecord, num_foreground: int) -> Result:
    """Read and decode one record; damaged or inconsistent ones come back as a `Rejection`.

    Args:
        record: the entry of a source.
        num_foreground: C; masks may hold 0..C and 255.
    """
    try:
        return _check(record, num_foreground)
    except RecordError as error:
        return Rejection(record.id, str(error))


def _check(record: SourceRecord, num_foreground: int) -> CheckedRecord:
    """Return the checked record; raises `RecordError`."""
    image = _read(record.image, "image")
    width, height = decode_image(image).size
    mask: bytes | None = None
    labels = record.tags or ()
    if record.mask is not None:
        mask = _read(record.mask, "mask")
        ids = decode_mask(mask)
        present = _check_mask(ids, width, height, num_foreground)
        mask = as_grey_png(mask, ids)
        labels = present if record.tags is None else record.tags
    if any(not 0 <= label < num_foreground for label in labels):
        raise RecordError(f"tag outside 0..{num_foreground - 1}: {labels}")
    return CheckedRecord(record.id, image, mask, tuple(sorted(set(labels))), width, height, record.context)


def _read(source: Path | bytes, what: str) -> bytes:
    """Return a file's bytes; raises `RecordError` where it is absent or cannot be read."""
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(f"no {what} file {source.parent.name}/{source.name}") from error
    except OSError as error:
        raise RecordError(f"{what} file cannot be read: {error.strerror or error}") from error


def _check_mask(ids: NDArray[np.uint8], width: int, height: int, num_foreground: int) -> tuple[int, ...]:
    """Return the 0-based foreground classes of a mask `[H, W]`; raises `RecordError` if it is wrong."""
    if ids.shape != (height, width):
        raise RecordError(f"mask is {ids.shape[1]}x{ids.shape[0]} pixels, the image {width}x{height}")
    values = np.unique(ids)
    outside = values[(values > num_foreground) & (values != IGNORE)]
    if outside.size:
        raise RecordError(f"mask value {int(outside[0])} is outside 0..{num_foreground} and {IGNORE}")
    return tuple(int(value) - 1 for value in values if 0 < value <= num_foreground)
