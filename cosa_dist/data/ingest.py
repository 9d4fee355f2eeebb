"""Ingest: the records of a source, checked one by one, become a shard folder.

Bad records are left out and listed with their reasons (`rejected.json` in the output); too many of
them end the ingest with one line and without output. Counts are compared with the known size of the
split. Training splits are shuffled once, with a fixed seed, so that every shard is a mixture.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest_check import Result, check_entry
from cosa_dist.data.ingest_sources import (
    Entry,
    Rejection,
    SourceRecord,
    duplicates_rejected,
    unsafe_id,
)
from cosa_dist.data.ingest_write import SplitWriter, output_folder
from cosa_dist.data.shards import DESCRIPTION, FORMAT, FORMAT_VERSION

REJECTED = "rejected.json"
_SHUFFLE_SEED = 0
_BLOCK = 64
_SHOWN_REJECTIONS = 10

Checker = Callable[[list[Entry]], Iterator[Result]]


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    `shards` per split (None chooses 8 to 128), `max_bad_share` of a split's entries that may be
    left out, whether an existing shard folder is replaced, and how many processes decode.
    """

    shards: int | None = None
    max_bad_share: float = 0.02
    overwrite: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        if self.shards is not None and self.shards < 1:
            raise DataError(f"shards must be 1 or more; got {self.shards}")
        if not 0.0 <= self.max_bad_share < 1.0:
            raise DataError(f"the share of bad records is in [0, 1); got {self.max_bad_share}")
        if self.processes < 1:
            raise DataError(f"processes must be 1 or more; got {self.processes}")


@dataclass(frozen=True)
class SplitReport:
    """What became of one split; `expected` is None where no size is known."""

    name: str
    count: int
    shards: int
    expected: int | None
    rejections: tuple[Rejection, ...]

    def line(self) -> str:
        """One line for the terminal."""
        text = f"{self.name}: {self.count} records in {self.shards} shards"
        if self.rejections:
            text += f", {len(self.rejections)} rejected"
        if self.expected is not None and self.expected != self.count:
            text += f"; differs from the known size of {self.expected}"
        return text


def ingest(
    sources: Mapping[str, Iterable[Entry]],
    info: DatasetInfo,
    out: Path,
    options: IngestOptions | None = None,
    console: Console | None = None,
) -> list[SplitReport]:
    """Write the records of each split's source to the shard folder `out`.

    Args:
        sources: entries by split name.
        info: name, classes and known sizes of the data set.
        out: the folder to make; appears only when everything is written.
        options: see `IngestOptions`.
        console: where progress, counts and rejections are shown; None shows nothing.

    Raises:
        DataError: `out` may not be written, a split is empty, or too many of its records are bad.
    """
    options = options or IngestOptions()
    for split in sources:
        if reason := unsafe_id(split):
            raise DataError(f"split name '{split}' cannot be used: {reason}")
    console = console or Console(quiet=True)
    reports: list[SplitReport] = []
    described: dict[str, Any] = {}
    with (
        output_folder(out, options.overwrite) as folder,
        _checker(info.num_foreground, options.processes) as check,
    ):
        for split, entries in sources.items():
            report, described[split] = _ingest_split(split, entries, info, folder, options, check, console)
            console.print(report.line(), markup=False, highlight=False, soft_wrap=True)
            reports.append(report)
        _write_json(
            folder / DESCRIPTION,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "name": info.name,
                "class_names": list(info.class_names),
                "splits": described,
            },
        )
        rejected = {report.name: [asdict(r) for r in report.rejections] for report in reports}
        _write_json(folder / REJECTED, rejected)
    return reports


def _ingest_split(
    split: str,
    source: Iterable[Entry],
    info: DatasetInfo,
    folder: Path,
    options: IngestOptions,
    check: Checker,
    console: Console,
) -> tuple[SplitReport, dict[str, Any]]:
    """Write one split; return its report and its part of the description."""
    rejections: list[Rejection] = []
    with _progress(console) as progress:
        listing = progress.track(source, description=f"{split}: list")
        entries = duplicates_rejected(iter(listing))
        if split.startswith("train"):
            random.Random(_SHUFFLE_SEED).shuffle(entries)
        with_context = any(isinstance(e, SourceRecord) and e.context for e in entries)
        writer = SplitWriter(folder / split, info, len(entries), options.shards, with_context)
        for result in progress.track(check(entries), total=len(entries), description=f"{split}: check"):
            if isinstance(result, Rejection):
                rejections.append(result)
            else:
                writer.add(result)
    rejections.sort(key=lambda rejection: (rejection.id, rejection.reason))
    _show_rejections(split, rejections, console)
    _refuse_too_many(split, len(entries), rejections, options.max_bad_share)
    described = writer.finish()
    expected = info.split_sizes.get(split)
    report = SplitReport(split, writer.count, len(described["shards"]), expected, tuple(rejections))
    return report, described


@contextmanager
def _checker(num_foreground: int, processes: int) -> Iterator[Checker]:
    """Give a function that checks entries in order, in this process or shared by several."""
    check = partial(check_entry, num_foreground=num_foreground)
    if processes == 1:
        yield partial(map, check)
        return
    # Fresh processes: forking one that already runs Arrow's threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:

        def check_all(entries: list[Entry]) -> Iterator[Result]:
            # A block at a time, so that the pictures of a whole split never wait in memory.
            block = _BLOCK * processes
            for start in range(0, len(entries), block):
                yield from pool.map(check, entries[start : start + block], chunksize=8)

        yield check_all


def _refuse_too_many(split: str, total: int, rejections: list[Rejection], max_bad_share: float) -> None:
    """Raise `DataError` if no record is left or more than the allowed share is bad."""
    if total == 0:
        raise DataError(f"split '{split}' has no records; nothing was written")
    bad = len(rejections)
    if bad == total or bad > max_bad_share * total:
        reason, often = Counter(rejection.reason for rejection in rejections).most_common(1)[0]
        raise DataError(
            f"split '{split}': {bad} of {total} records are bad, more than the allowed "
            f"{max_bad_share:.0%}; most often ({often}x): {reason}; nothing was written "
            "(--max-bad-share allows more)"
        )


def _show_rejections(split: str, rejections: list[Rejection], console: Console) -> None:
    """Print the first rejections of a split and how many more there are."""
    for rejection in rejections[:_SHOWN_REJECTIONS]:
        line = f"{split}: rejected {rejection.id!r}: {rejection.reason}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(rejections) > _SHOWN_REJECTIONS:
        more = len(rejections) - _SHOWN_REJECTIONS
        console.print(f"{split}: {more} more rejected, all in {REJECTED}", highlight=False)


def _progress(console: Console) -> Progress:
    """Return a progress bar that vanishes when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and not console.quiet
    return Progress(*columns, console=console, transient=True, disable=not shown)


def _write_json(path: Path, content: object) -> None:
    """Write `content` as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
