"""One shard of an ingest: its entries are read, decoded and checked one by one, and the good ones written.

Pictures keep the bytes of their file; masks become (or stay) 8-bit grey-level PNGs. A shard is a whole job
for whichever process is free: only descriptions travel to the processes and only counts come back.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import as_grey_png, decode_image, decode_mask, orientation_of
from cosa_dist.data.errors import DataError, RecordError, Rejection
from cosa_dist.data.shards.split import FORMAT_VERSION, record_features
from cosa_dist.data.shards.writer import (
    ShardSummary,
    Trace,
    record_trace,
    shard_writer,
    stored,
    write_shard_record,
)
from cosa_dist.data.sources.record import Content, Entry, SourceRecord, entry_identity

_RULES = 3
"""Raised when records are made in another way, so that no older shard is taken over."""
UNTAGGED = ("keep", "leave-out")
"""What may become of images without any tag."""


@dataclass(frozen=True)
class ShardTask:
    """What a shard is made of: entries, classes, the rule for untagged images, and where it goes."""

    folder: Path
    number: int
    entries: list[Entry]
    class_names: tuple[str, ...]
    with_context: bool
    untagged: str

    @property
    def shard(self) -> Path:
        """The Arrow file; its record lies beside it."""
        return self.folder / f"{self.number:05d}.arrow"

    def key(self) -> str:
        """Hash of entries, contents, classes, options and rules."""
        made_by = (_RULES, FORMAT_VERSION, self.class_names, self.with_context, self.untagged)
        digest = hashlib.sha256(repr(made_by).encode())
        for entry in self.entries:
            digest.update(entry_identity(entry).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def write_shard(task: ShardTask) -> ShardSummary:
    """Check the entries and write those that are good; an `OSError` says that the disk refused."""
    key, rejections, traces = task.key(), [], []
    with shard_writer(task.shard, record_features(task.class_names, task.with_context)) as write:
        for entry in task.entries:
            checked = check_entry(entry, len(task.class_names), task.untagged)
            if isinstance(checked, Rejection):
                rejections.append(checked)
            else:
                row, trace = checked
                write(row)
                traces.append(trace)
    summary = ShardSummary(task.number, len(traces), task.shard.stat().st_size, tuple(rejections))
    write_shard_record(task.shard, key, summary, traces)
    return summary


def check_entry(
    entry: Entry, num_foreground: int, untagged: str = "keep"
) -> tuple[dict[str, Any], Trace] | Rejection:
    """Read and decode one record into a shard's row; damaged or inconsistent ones become a `Rejection`.

    Masks may hold 0..C and 255, tags 0..C-1. Images without tags are kept, or rejections by rule
    (`leave-out`).
    """
    if isinstance(entry, Rejection):
        return entry
    if entry.tags == () and untagged == "leave-out":
        return _without_tags(entry)
    content: bytes | Content | None = entry.image
    try:
        image = _read(entry.image, "image")
        picture = decode_image(image)
        mask, labels, ignored = None, entry.tags or (), 0
        values: tuple[int, ...] = ()
        if entry.mask is not None:
            content = entry.mask
            mask, values, ignored = _checked_mask(entry.mask, picture.size, num_foreground)
            if entry.tags is None:
                labels = tuple(value - 1 for value in values if value not in (0, IGNORE))
        if any(not 0 <= label < num_foreground for label in labels):
            raise RecordError(f"tag outside 0..{num_foreground - 1}: {labels}")
        content = entry.context
        context = None if entry.context is None else _read(entry.context, "context mask")
    except RecordError as error:
        cure = "" if ";" in str(error) else "; replace it, or take the id off the list"
        where = "" if content is None or isinstance(content, bytes) else content.where
        return Rejection(entry.id, f"{error}{cure}", where)
    if not labels and untagged == "leave-out":
        return _without_tags(entry, values)
    labels, (width, height) = tuple(sorted(set(labels))), picture.size
    row = {"id": entry.id, "labels": list(labels), "width": width, "height": height}
    row |= {"image": stored(image), "mask": stored(mask), "context": stored(context)}
    trace = record_trace(
        entry.id,
        image,
        mask,
        labels,
        mask_values=values,
        pixels=width * height,
        ignored=ignored,
        own_tags=entry.tags is not None,
        rotated=orientation_of(picture) != 1,
    )
    return row, trace


def _checked_mask(
    content: bytes | Content, size: tuple[int, int], num_foreground: int
) -> tuple[bytes, tuple[int, ...], int]:
    """A mask as a grey PNG, the values in it, and how many pixels are ignored; raises `RecordError`."""
    data = _read(content, "mask")
    ids = decode_mask(data)
    width, height = size
    if ids.shape != (height, width):
        raise RecordError(
            f"mask is {ids.shape[1]}x{ids.shape[0]} pixels, the image {width}x{height}; make them equal"
        )
    pixels = np.bincount(ids.ravel(), minlength=IGNORE + 1)
    values = tuple(np.flatnonzero(pixels).tolist())
    if unknown := [value for value in values if num_foreground < value != IGNORE]:
        raise RecordError(
            f"mask value {unknown[0]} is outside 0..{num_foreground} and {IGNORE}; "
            "write the classes' ids into it"
        )
    return as_grey_png(data, ids), values, int(pixels[IGNORE])


def _read(content: bytes | Content, what: str) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read()
    except FileNotFoundError as error:
        raise RecordError(f"no {what} file; get it, or take the id off the list") from error
    except OSError as error:
        reason = error.strerror or error
        raise RecordError(
            f"{what} file cannot be read: {reason}; look at its permissions and the disk"
        ) from error


def _without_tags(record: SourceRecord, mask_values: tuple[int, ...] = ()) -> Rejection:
    reason = "image has no tag and such images are left out (--untagged keep takes them)"
    if record.tags is None and mask_values:
        reason = f"mask holds no class (only {' and '.join(map(str, mask_values))}): {reason}"
    return Rejection(record.id, reason, by_rule=True)


@contextmanager
def shard_pool(processes: int) -> Iterator[Callable[[Iterable[ShardTask]], Iterator[ShardSummary]]]:
    """Give a function that writes shards in so many processes and yields the summary of each."""
    if processes == 1:
        yield lambda tasks: map(write_shard, tasks)
        return
    # Fresh processes: forking one that already runs Arrow's threads may hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start)

    def write_all(tasks: Iterable[ShardTask]) -> Iterator[ShardSummary]:
        try:
            for future in as_completed([pool.submit(write_shard, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the ingest died, perhaps for want of memory; the same command with fewer "
                "--processes continues where it stopped"
            ) from error

    try:
        yield write_all
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Leave Ctrl-C to the job, and end with it, so that nothing is written into what a new job took over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
