"""Writes a shard folder: its Arrow files one by one into `.NAME.partial`, then all under the name at once.

Each shard `<number>.arrow` is written atomically; its record `<number>.json` comes last and holds a key (a
hash of all that the shard was made of), so that an interrupted job resumes after the shards it finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Features
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout

from cosa_dist.atomic import atomic_file, atomic_write, replace_folder
from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.shards.split import DESCRIPTION, FORMAT, FORMAT_VERSION

_LOCK = "ingest.lock"
_ROWS_PER_BATCH = 32


class Trace(NamedTuple):
    """What is kept of a record in the shard's record."""

    id: str
    content: str
    """hash of all of it"""
    picture: str
    """hash of its picture"""
    labels: Sequence[int]
    mask_values: Sequence[int] = ()
    """the ids in its mask; none if there is no mask"""
    pixels: int = 0
    ignored: int = 0
    """ignored pixels of the mask"""
    own_tags: bool = False
    """whether the labels were given, and not taken from the mask"""
    rotated: bool = False
    """whether the picture has an EXIF rotation"""


@dataclass(frozen=True)
class ShardSummary:
    """A finished shard: its records, its bytes, and what was left out."""

    number: int
    count: int
    size: int
    rejections: tuple[Rejection, ...] = ()


@contextmanager
def shard_writer(path: Path, features: Features) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that appends a row; columns that are not among the features are left out."""
    with (
        atomic_file(path) as temporary,
        ArrowWriter(path=str(temporary), features=features, writer_batch_size=_ROWS_PER_BATCH) as writer,
    ):
        yield lambda row: writer.write({name: row[name] for name in features})
        writer.finalize()


def stored(data: bytes | None) -> dict[str, Any] | None:
    """Bytes in the form of an HF image column."""
    return None if data is None else {"bytes": data, "path": None}


def record_trace(
    record_id: str, image: bytes, mask: bytes | None, labels: Sequence[int], **facts: Any
) -> Trace:
    """Hash id, picture, mask and tags, each on its own, so that no two contents look alike."""
    picture = hashlib.sha256(image).digest()
    hashed = bytes(32) if mask is None else hashlib.sha256(mask).digest()
    tags = ",".join(map(str, labels)).encode()
    whole = hashlib.sha256(picture + hashed + tags + b"|" + record_id.encode()).hexdigest()
    return Trace(record_id, whole, picture[:16].hex(), labels, **facts)


def write_shard_record(
    shard: Path, key: str, summary: ShardSummary, traces: Sequence[Trace], **more: Any
) -> None:
    """Mark the Arrow file `shard` as finished."""
    content = {"key": key, "summary": asdict(summary), "traces": traces, **more}
    atomic_write(shard.with_suffix(".json"), json.dumps(content))


def finished_shard(shard: Path, key: str) -> tuple[ShardSummary, dict[str, Any]] | None:
    """Summary and record of a shard that is there, complete, and made of the same; otherwise None."""
    try:
        content = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))
        rejections = tuple(Rejection(**rejection) for rejection in content["summary"]["rejections"])
        found = ShardSummary(**{**content["summary"], "rejections": rejections})
        valid = content["key"] == key and shard.stat().st_size == found.size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (found, content) if valid else None


def shard_traces(shard: Path) -> list[Trace]:
    """The traces of a finished shard's records, in their order."""
    content = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))
    return [Trace(*row) for row in content["traces"]]


def split_description(
    class_names: Sequence[str], summaries: Sequence[ShardSummary], traces: Iterable[Trace]
) -> dict[str, Any]:
    """A split's part of `dataset.json`, from its shards and records in order.

    The fingerprint is the SHA-256 of the traces' hashes, so it does not depend on the number of shards.
    """
    fingerprint, counts = hashlib.sha256(), Counter[int]()
    for trace in traces:
        fingerprint.update(bytes.fromhex(trace.content))
        counts.update(trace.labels)
    written = [summary for summary in summaries if summary.count]
    return {
        "count": sum(summary.count for summary in written),
        "fingerprint": f"sha256:{fingerprint.hexdigest()}",
        "class_counts": {name: counts[index] for index, name in enumerate(class_names)},
        "shards": [
            {
                "file": f"shard-{number:05d}-of-{len(written):05d}.arrow",
                "count": summary.count,
                "bytes": summary.size,
                "part": f"{summary.number:05d}.arrow",
            }
            for number, summary in enumerate(written)
        ],
    }


def partial_path(out: Path) -> Path:
    """Where the shards of `out` lie until all of them are there."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def partial_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give the partial folder of `out`; it stays unless it was published or holds no finished shard.

    Raises `DataError` if `out` exists and may not be replaced, its parent cannot be written to, or another
    job writes the same output.
    """
    _check_output(out, overwrite)
    partial = partial_path(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make a folder in {out.parent}: {error.strerror}") from error
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"another ingest is writing {out}; wait for it or choose another output") from error
    try:
        yield partial
    finally:
        lock.release()
        if not any(partial.glob("*/*.json")):
            shutil.rmtree(partial, ignore_errors=True)


def remove_others(folder: Path, known: Collection[str]) -> None:
    """Remove from a split's folder all but the files named in `known`."""
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink()


def publish(
    partial: Path, out: Path, overwrite: bool, content: Mapping[str, Any], documents: Mapping[str, Any]
) -> None:
    """Give the finished shards their final names and the partial folder the name `out`.

    `content` is that of `dataset.json`: `name`, `class_names` and `splits`, whose shards are listed with the
    name of each one while partial as `part`, which is taken out. `documents` are further JSON files by name.
    Raises `DataError` if `out` may not be replaced.
    """
    _check_output(out, overwrite)
    splits = content["splits"]
    for path in partial.iterdir():
        if path.is_dir() and path.name not in splits:
            shutil.rmtree(path)
    for split, described in splits.items():
        for shard in described["shards"]:
            (partial / split / shard.pop("part")).rename(partial / split / shard["file"])
        remove_others(partial / split, {shard["file"] for shard in described["shards"]})
    description = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    for name, document in {DESCRIPTION: description, **documents}.items():
        # Lone surrogates, which UTF-8 has not, stay JSON's escapes.
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (partial / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    (partial / _LOCK).unlink(missing_ok=True)
    replace_folder(partial, out)


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise `DataError` if `out` holds something that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise DataError(f"{out} exists and is not a shard folder; choose another output")
    if not overwrite:
        raise DataError(f"{out} exists already; choose another output or pass --overwrite")
