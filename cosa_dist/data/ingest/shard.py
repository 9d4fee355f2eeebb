"""One shard of an ingest: a part of a split's entries, checked and written by whichever process is free.

A shard is written under a temporary name; then comes its record `<number>.json`, last. That file
holds the shard's key, a hash of everything that the shard was made of and how. A later attempt
takes the shard over if its key is still the same, and writes it anew if not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cosa_dist.atomic import atomic_write
from cosa_dist.data.ingest.check import CheckedRecord, check_entry
from cosa_dist.data.ingest.masks import MaskSurvey
from cosa_dist.data.shards.split import FORMAT_VERSION, record_features
from cosa_dist.data.shards.writer import RowWriter, stored
from cosa_dist.data.sources.record import Entry, Rejection, entry_identity

_RULES = 2
"""Raised when records are made in another way, so that no older shard is taken over."""


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
        """The Arrow file; not there if all entries were left out."""
        return self.folder / f"{self.number:05d}.arrow"

    @property
    def record(self) -> Path:
        """The shard's record, there only when the shard is whole."""
        return self.folder / f"{self.number:05d}.json"

    def key(self) -> str:
        """Hash of entries, contents, classes, options and rules."""
        made_by = (_RULES, FORMAT_VERSION, self.class_names, self.with_context, self.untagged)
        digest = hashlib.sha256(repr(made_by).encode())
        for entry in self.entries:
            digest.update(entry_identity(entry).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardSummary:
    """A finished shard: records, size in bytes, counts by class, records that lack something, rejections.

    `survey` is the row of a `MaskSurvey`.
    """

    number: int
    count: int
    size: int
    class_counts: tuple[int, ...]
    without_tags: int
    without_mask: int
    rejections: tuple[Rejection, ...]
    survey: dict[str, Any] = field(default_factory=dict)


class Trace(NamedTuple):
    """What is remembered of each record: its id, a hash of all of it, and a hash of its picture."""

    id: str
    content: str
    picture: str


def write_shard(task: ShardTask) -> ShardSummary:
    """Check the entries and write those that are good; returns what became of them.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    key = task.key()
    part = task.shard.with_suffix(f".part-{os.getpid()}")
    writer = RowWriter(part, record_features(task.class_names, task.with_context))
    rejections, traces, classes, survey = [], [], Counter[int](), MaskSurvey()
    without_tags, without_mask = 0, 0
    try:
        for entry in task.entries:
            result = check_entry(entry, len(task.class_names), task.untagged)
            if isinstance(result, Rejection):
                rejections.append(result)
                continue
            writer.add(_row_of(result))
            traces.append(record_trace(result.id, result.image, result.mask, result.labels))
            classes.update(result.labels)
            survey.add(result)
            without_tags += not result.labels
            without_mask += result.mask is None
        size = writer.finish()
        if traces:
            part.replace(task.shard)
    finally:
        part.unlink(missing_ok=True)
    class_counts = tuple(classes[index] for index in range(len(task.class_names)))
    summary = ShardSummary(
        task.number, len(traces), size, class_counts, without_tags, without_mask, tuple(rejections),
        survey.as_row(),
    )  # fmt: skip
    atomic_write(task.record, json.dumps(shard_record(key, summary, traces)))
    return summary


def finished_shard(task: ShardTask) -> ShardSummary | None:
    """Return the summary of a shard that is there already and still right, otherwise None."""
    try:
        content = json.loads(task.record.read_text(encoding="utf-8"))
        found = summary_of(content)
        whole = not found.count or task.shard.stat().st_size == found.size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole and content["key"] == task.key() else None


def shard_record(key: str, summary: ShardSummary, traces: Sequence[Trace]) -> dict[str, Any]:
    """What a finished shard's record holds, as plain values."""
    return {"key": key, "summary": asdict(summary), "traces": traces}


def summary_of(content: Mapping[str, Any]) -> ShardSummary:
    """The summary in a shard's record.

    Raises:
        KeyError, TypeError, ValueError: the record is damaged.
    """
    summary = dict(content["summary"])
    summary["class_counts"] = tuple(summary["class_counts"])
    summary["rejections"] = tuple(Rejection(**rejection) for rejection in summary["rejections"])
    return ShardSummary(**summary)


def shard_traces(record: Path) -> list[Trace]:
    """Return the traces of a finished shard's records, in their order."""
    content = json.loads(record.read_text(encoding="utf-8"))
    return [Trace(*row) for row in content["traces"]]


def record_trace(record_id: str, image: bytes, mask: bytes | None, labels: Sequence[int]) -> Trace:
    """Hash id, picture, mask and tags, each on its own, so that no two contents look alike."""
    picture = hashlib.sha256(image).digest()
    hashed = bytes(32) if mask is None else hashlib.sha256(mask).digest()
    tags = ",".join(map(str, labels)).encode()
    whole = hashlib.sha256(picture + hashed + tags + b"|" + record_id.encode()).hexdigest()
    return Trace(record_id, whole, picture[:16].hex())


def _row_of(record: CheckedRecord) -> dict[str, Any]:
    """A checked record as a row of a shard."""
    return {
        "id": record.id,
        "image": stored(record.image),
        "mask": stored(record.mask),
        "labels": list(record.labels),
        "width": record.width,
        "height": record.height,
        "context": stored(record.context),
    }
