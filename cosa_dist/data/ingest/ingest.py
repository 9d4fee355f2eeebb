"""Ingest: the records of a source, checked one by one, become a shard folder.

Bad records are left out and listed with their reasons (`rejected.json` in the output); too many of
them end the ingest with one line and without output. Counts are compared with the known size of the
split. Training splits are shuffled once, with a fixed seed, so that every shard is a mixture.
Whatever ends an ingest early, the shards that were finished stay for the next attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.masks import mask_lines, merged
from cosa_dist.data.ingest.options import IngestOptions
from cosa_dist.data.ingest.pool import shard_pool
from cosa_dist.data.ingest.report import SplitReport, class_lines, coverage_lines
from cosa_dist.data.ingest.split import SplitIngest, say
from cosa_dist.data.shards.publish import partial_folder, publish
from cosa_dist.data.shards.split import DESCRIPTION, FORMAT, FORMAT_VERSION
from cosa_dist.data.sources.record import Entry, unsafe_id

__all__ = ["REJECTED", "REPEATED", "IngestOptions", "SplitReport", "ingest"]

REJECTED = "rejected.json"
REPEATED = "repeated.json"


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
        DataError: `out` may not be written, a split is empty, too many of its records are bad, the masks
            are no class masks or contradict the tags, or the name is that of another known data set.
        OSError: the disk is full or cannot be written to.
    """
    options = options or IngestOptions()
    _check_names(info, sources)
    console = console or Console(quiet=True)
    reports: list[SplitReport] = []
    described: dict[str, Any] = {}
    with partial_folder(out, options.overwrite) as folder, shard_pool(options.processes) as write:
        splits = SplitIngest(info, folder, options, write, console)
        for split, source in sources.items():
            report, described[split] = splits.run(split, source)
            say(console, *report.rejection_lines(), report.line())
            reports.append(report)
        say(console, *splits.repeats.lines())
        _say_of_classes(info, reports, described, options, console)
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": info.name,
            "class_names": list(info.class_names),
            "splits": described,
        }
        rejected = {report.name: list(map(asdict, report.rejections)) for report in reports}
        documents = {DESCRIPTION: description, REJECTED: rejected, REPEATED: splits.repeats.groups()}
        publish(folder, out, options.overwrite, documents)
    return reports


def _check_names(info: DatasetInfo, splits: Iterable[str]) -> None:
    """Raise `DataError` for a known data set's name with other classes, or a split that leaves the folder."""
    known = KNOWN.get(info.name.casefold())
    if known and known.class_names != info.class_names:
        raise DataError(
            f"the name '{info.name}' is that of a known data set with {known.num_foreground} other classes; "
            "give this one its own with --name"
        )
    for split in splits:
        if reason := unsafe_id(split):
            raise DataError(f"split name '{split}' cannot be used: {reason}")


def _say_of_classes(
    info: DatasetInfo,
    reports: list[SplitReport],
    described: Mapping[str, Any],
    options: IngestOptions,
    console: Console,
) -> None:
    """Say which id is which class, how often it occurs, and how masks and tags fit; refuse if not at all."""
    surveys = {report.name: report.survey for report in reports}
    total = merged({split: survey.as_row() for split, survey in surveys.items()})
    counts = {split: described[split]["class_counts"] for split in surveys}
    say(console, *class_lines(info.class_names, counts, total))
    say(console, *coverage_lines(info.class_names, counts, {report.name: report.count for report in reports}))
    say(console, *(line for report in reports for line in report.rotation_lines()))
    say(console, *mask_lines(surveys, info.class_names, options.classes_given))
