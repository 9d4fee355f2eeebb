"""One split of an ingest: entries shared among shards, those written that are not there yet, all counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, printable
from cosa_dist.data.ingest.masks import merged
from cosa_dist.data.ingest.options import IngestOptions
from cosa_dist.data.ingest.pool import Write
from cosa_dist.data.ingest.report import Repeats, SplitReport, refuse_too_many, split_description
from cosa_dist.data.ingest.shard import ShardSummary, ShardTask, Trace, finished_shard, shard_traces
from cosa_dist.data.shards.publish import remove_strangers
from cosa_dist.data.sources.record import Entry, Rejection, SourceRecord, duplicates_rejected

_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class SplitIngest:
    """Writes splits of one data set into one folder; `repeats` gathers pictures over all of them."""

    info: DatasetInfo
    folder: Path
    options: IngestOptions
    write: Write
    console: Console
    repeats: Repeats = field(default_factory=Repeats)

    def run(self, split: str, source: Iterable[Entry]) -> tuple[SplitReport, dict[str, Any]]:
        """Write one split; return its report and its part of the description.

        Raises:
            DataError: no record is there or left, or too many are bad.
        """
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
                refuse_too_many(split, len(entries), bad, self.options.max_bad_share)
        return self._described(split, tasks, [summaries[task.number] for task in tasks])

    def _tasks(self, entries: list[Entry], folder: Path) -> list[ShardTask]:
        """Share the entries equally among the shards, in order."""
        with_context = any(isinstance(entry, SourceRecord) and entry.context for entry in entries)
        count = min(len(entries), self.options.shards or default_shard_count(len(entries)))
        ends = [len(entries) * number // count for number in range(count + 1)]
        return [
            ShardTask(
                folder=folder,
                number=number,
                entries=entries[ends[number] : ends[number + 1]],
                class_names=self.info.class_names,
                with_context=with_context,
                untagged=self.options.untagged,
            )
            for number in range(count)
        ]

    def _summaries(self, split: str, tasks: list[ShardTask]) -> Iterator[ShardSummary]:
        """Yield the summaries of all shards, first of those that are there, then of those written now."""
        folder = tasks[0].folder
        folder.mkdir(exist_ok=True)
        found = len(list(folder.glob("*.json")))
        done = {task.number: summary for task in tasks if (summary := finished_shard(task))}
        if done:
            line = f"{split}: {len(done)} of {len(tasks)} shards are there from an earlier attempt"
            say(self.console, line)
        if found > len(done):
            line = f"{split}: {found - len(done)} shards of an earlier attempt had other files or options"
            say(self.console, f"{line}; they are made anew")
        kept = [task for task in tasks if task.number in done]
        remove_strangers(folder, {path.name for task in kept for path in (task.shard, task.record)})
        yield from done.values()
        yield from self.write(task for task in tasks if task.number not in done)

    def _described(
        self, split: str, tasks: list[ShardTask], summaries: list[ShardSummary]
    ) -> tuple[SplitReport, dict[str, Any]]:
        """Return report and description of a split whose shards are all there."""
        described = split_description(self.info.class_names, summaries, self._traces(split, tasks))
        rejections = [rejection for summary in summaries for rejection in summary.rejections]
        if described["count"] == 0:
            total = len(rejections)
            reason = Counter(rejection.reason for rejection in rejections).most_common(1)[0][0]
            raise DataError(
                f"split '{split}': all {total} records were left out ({reason}); nothing was written"
            )
        report = SplitReport(
            name=split,
            count=described["count"],
            shards=len(described["shards"]),
            expected=self.info.split_sizes.get(split),
            rejections=tuple(sorted(rejections, key=lambda rejection: (rejection.id, rejection.reason))),
            without_tags=sum(summary.without_tags for summary in summaries),
            without_mask=sum(summary.without_mask for summary in summaries),
            survey=merged(summary.survey for summary in summaries),
        )
        return report, described

    def _traces(self, split: str, tasks: list[ShardTask]) -> Iterator[Trace]:
        """Yield the traces of all records in order, and look for pictures that occur twice."""
        for task in tasks:
            for trace in shard_traces(task.record):
                self.repeats.add(split, trace)
                yield trace


def default_shard_count(records: int) -> int:
    """Return a number of shards between 8 and 128, about 128 records each, never more than records."""
    return max(1, min(records, 128, max(8, records // 128)))


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, whatever signs they hold and however long they are."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


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
