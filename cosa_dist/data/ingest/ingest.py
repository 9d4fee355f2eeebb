"""Ingest: the records of a source, checked one by one, become a shard folder.

Bad records are left out and listed with their reasons (`rejected.json` in the output); too many of them end
the ingest with one line and without output. Training splits are shuffled once, with a fixed seed, so that
every shard is a mixture. Whatever ends an ingest early, the shards that were finished stay for the next
attempt.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError, Rejection, nearest_name, printable
from cosa_dist.data.ingest.report import (
    MaskSurvey,
    SplitReport,
    class_lines,
    coverage_lines,
    mask_lines,
    refuse_too_many,
    repeated_lines,
    repeated_pictures,
)
from cosa_dist.data.ingest.shard import UNTAGGED, ShardTask, shard_pool
from cosa_dist.data.shards.writer import (
    ShardSummary,
    Trace,
    finished_shard,
    partial_folder,
    publish,
    remove_others,
    shard_traces,
    split_description,
)
from cosa_dist.data.sources.record import Entry, SourceRecord, duplicates_rejected, unsafe_id

REJECTED, REPEATED = "rejected.json", "repeated.json"
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    `shards` per split (None chooses 8 to 128); the fraction of a split's entries that may be bad; whether an
    existing shard folder is replaced; how many processes work; whether images without tags are kept (`keep`)
    or left out (`leave-out`); whether the user gave the order of the classes, so that masks which contradict
    the tags are reported and not refused.
    """

    shards: int | None = None
    max_bad_fraction: float = 0.02
    overwrite: bool = False
    processes: int = 1
    untagged: str = "keep"
    classes_given: bool = False

    def __post_init__(self) -> None:
        if self.shards is not None and self.shards < 1:
            raise DataError(f"shards must be 1 or more; got {self.shards}")
        if not 0.0 <= self.max_bad_fraction < 1.0:
            raise DataError(f"the fraction of bad records is in [0, 1); got {self.max_bad_fraction}")
        if self.processes < 1:
            raise DataError(f"processes must be 1 or more; got {self.processes}")
        if self.untagged not in UNTAGGED:
            near = nearest_name(self.untagged, UNTAGGED)
            raise DataError(f"untagged is '{self.untagged}'{near}; allowed: {', '.join(UNTAGGED)}")


def ingest(
    sources: Mapping[str, Iterable[Entry]],
    info: DatasetInfo,
    out: Path,
    options: IngestOptions | None = None,
    console: Console | None = None,
) -> list[SplitReport]:
    """Write the records of each split's source to the shard folder `out`, which appears when all is written.

    Raises `DataError` if `out` may not be written, a split is empty, too many of its records are bad, the
    masks are no class masks or contradict the tags, or the name is that of another known data set.
    """
    options = options or IngestOptions()
    _check_names(info, sources)
    console = console or Console(quiet=True)
    reports: list[SplitReport] = []
    described: dict[str, Any] = {}
    with partial_folder(out, options.overwrite) as folder, shard_pool(options.processes) as write:
        splits = _SplitIngest(info, folder, options, write, console)
        for split, source in sources.items():
            report, described[split] = splits.run(split, source)
            say(console, *report.rejection_lines(), report.line())
            reports.append(report)
        repeated = repeated_pictures(splits.places.values())
        say(console, *repeated_lines(repeated))
        surveys = {report.name: report.survey for report in reports}
        counts = {split: content["class_counts"] for split, content in described.items()}
        say(console, *class_lines(info.class_names, counts, splits.survey))
        say(console, *coverage_lines(info.class_names, counts, {r.name: r.count for r in reports}))
        say(console, *(line for report in reports for line in report.rotation_lines()))
        say(console, *mask_lines(splits.survey, surveys, info.class_names, options.classes_given))
        content = {"name": info.name, "class_names": list(info.class_names), "splits": described}
        rejected = {report.name: list(map(asdict, report.rejections)) for report in reports}
        documents = {REJECTED: rejected, REPEATED: repeated}
        publish(folder, out, options.overwrite, content, documents)
    return reports


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, whatever signs they hold and however long they are."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def default_shard_count(records: int) -> int:
    """A number of shards between 8 and 128, about 128 records each, never more than records."""
    return max(1, min(records, 128, max(8, records // 128)))


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


@dataclass(frozen=True)
class _SplitIngest:
    """Writes splits of one data set into one folder; gathers the survey and the pictures' places of all."""

    info: DatasetInfo
    folder: Path
    options: IngestOptions
    write: Callable[[Iterable[ShardTask]], Iterator[ShardSummary]]
    console: Console
    survey: MaskSurvey = field(default_factory=MaskSurvey)
    places: defaultdict[bytes, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def run(self, split: str, source: Iterable[Entry]) -> tuple[SplitReport, dict[str, Any]]:
        """Write one split; return its report and its part of `dataset.json`."""
        with _progress(self.console) as progress:
            entries = duplicates_rejected(iter(progress.track(source, description=f"{split}: list")))
            if not entries:
                raise DataError(f"split '{split}' has no records; nothing was written")
            if split.startswith("train"):
                random.Random(_SHUFFLE_SEED).shuffle(entries)
            tasks = self._tasks(entries, self.folder / split)
            bar = progress.add_task(f"{split}: check", total=len(entries))
            summaries: dict[int, ShardSummary] = {}
            bad: list[Rejection] = []
            for summary in self._summaries(split, tasks):
                summaries[summary.number] = summary
                progress.advance(bar, len(tasks[summary.number].entries))
                bad.extend(rejection for rejection in summary.rejections if not rejection.by_rule)
                refuse_too_many(split, len(entries), bad, self.options.max_bad_fraction)
        return self._described(split, tasks, [summaries[task.number] for task in tasks])

    def _tasks(self, entries: list[Entry], folder: Path) -> list[ShardTask]:
        """Divide the entries equally among the shards, in order."""
        with_context = any(isinstance(entry, SourceRecord) and entry.context for entry in entries)
        count = min(len(entries), self.options.shards or default_shard_count(len(entries)))
        ends = [len(entries) * number // count for number in range(count + 1)]
        names, untagged = self.info.class_names, self.options.untagged
        return [
            ShardTask(folder, number, entries[ends[number] : ends[number + 1]], names, with_context, untagged)
            for number in range(count)
        ]

    def _summaries(self, split: str, tasks: list[ShardTask]) -> Iterator[ShardSummary]:
        """Yield the summaries of all shards, first of those that are there, then of those written now."""
        folder = tasks[0].folder
        folder.mkdir(exist_ok=True)
        there = {int(path.stem) for path in folder.glob("*.json")}
        found = {t.number: finished_shard(t.shard, t.key()) for t in tasks if t.number in there}
        done = {number: finished[0] for number, finished in found.items() if finished}
        if done:
            say(
                self.console, f"{split}: {len(done)} of {len(tasks)} shards are there from an earlier attempt"
            )
        if len(there) > len(done):
            line = (
                f"{split}: {len(there) - len(done)} shards of an earlier attempt had other files or options"
            )
            say(self.console, f"{line}; they are made anew")
        remove_others(folder, {f"{number:05d}.{kind}" for number in done for kind in ("arrow", "json")})
        yield from done.values()
        yield from self.write(task for task in tasks if task.number not in done)

    def _described(
        self, split: str, tasks: list[ShardTask], summaries: list[ShardSummary]
    ) -> tuple[SplitReport, dict[str, Any]]:
        """Return report and description of a split whose shards are all there."""
        survey = MaskSurvey()
        traces = self._surveyed(split, tasks, survey)
        described = split_description(self.info.class_names, summaries, traces)
        rejections = [rejection for summary in summaries for rejection in summary.rejections]
        if described["count"] == 0:
            reason = Counter(rejection.reason for rejection in rejections).most_common(1)[0][0]
            raise DataError(
                f"split '{split}': all {len(rejections)} records were left out ({reason}); "
                "nothing was written"
            )
        report = SplitReport(
            name=split,
            count=described["count"],
            shards=len(described["shards"]),
            expected=self.info.split_sizes.get(split),
            rejections=tuple(sorted(rejections, key=lambda rejection: (rejection.id, rejection.reason))),
            survey=survey,
        )
        return report, described

    def _surveyed(self, split: str, tasks: list[ShardTask], survey: MaskSurvey) -> Iterator[Trace]:
        """Yield the traces of all records in order, and count them."""
        for task in tasks:
            for trace in shard_traces(task.shard):
                survey.add(trace, trace.id)
                self.survey.add(trace, f"{split}/{trace.id}")
                self.places[bytes.fromhex(trace.picture)].append((split, trace.id))
                yield trace


def _progress(console: Console) -> Progress:
    """A progress bar that vanishes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not console.quiet
    return Progress(*columns, console=console, transient=True, disable=not shown)
