"""`dataset.json`: what a shard folder says of itself, read from a local folder or a URL.

It gives name and classes and, per split, the counts, the shards and a fingerprint of the content. All names
in it are checked before they become part of a path, so nothing outside the folder is ever read.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.shards.remote import fetch, is_remote, local_path, read_remote

DESCRIPTION = "dataset.json"
FORMAT = "cosa_dist shards"
FORMAT_VERSION = 1

_PLAIN_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class ShardEntry:
    """One Arrow file of a split: its name, its number of records and, where known, of bytes."""

    file: str
    count: int
    size: int | None = None


@dataclass(frozen=True)
class Split:
    """One split of a shard folder; plain values, so that it travels to other processes."""

    root: str
    """the shard folder, a path or a URL without final slash"""
    name: str
    info: DatasetInfo
    size: int
    """number of records"""
    fingerprint: str
    """hash of ids, pictures, masks and tags in their order, the same wherever it lies"""
    class_counts: dict[str, int]
    """records by class name"""
    shards: tuple[ShardEntry, ...]
    """the Arrow files in record order"""
    pseudo_masks: dict[str, Any] | None = None
    """what made the masks, if a network did: run, checkpoint and settings; None for true ones"""
    cache: str = ""
    """folder for copies of remote shards; empty: none are kept"""

    def __len__(self) -> int:
        return self.size

    @property
    def shard_counts(self) -> tuple[int, ...]:
        """Records of each shard, in record order."""
        return tuple(shard.count for shard in self.shards)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C foreground class names in id order."""
        return self.info.class_names

    def open_shard(self, number: int) -> Dataset:
        """Memory-map shard `number`; raises `DataError` if it is missing, damaged or cannot be fetched."""
        entry = self.shards[number]
        where = f"{self.root}/{self.name}/{entry.file}"
        if not is_remote(self.root):
            path = local_path(where)
            if not path.is_file():
                raise DataError(f"shard {where} is missing; copy it again or ingest again")
            return _open_arrow(path, entry, where)
        if self.cache:
            return self._from_cache(entry, where)
        with tempfile.TemporaryDirectory(prefix="cosa_dist-shard-", ignore_cleanup_errors=True) as folder:
            # The mapping outlives the file's name: nothing stays behind when the reader ends.
            return _fetched(Path(folder) / entry.file, entry, where)

    def _from_cache(self, entry: ShardEntry, where: str) -> Dataset:
        """Open a shard's copy in the cache; a missing or damaged one is fetched under a lock."""
        # Named by content: the same data at another address, or changed data here, go by themselves.
        content = hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]
        path = Path(self.cache) / content / self.name / entry.file
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if path.is_file():
                    try:
                        return _open_arrow(path, entry, str(path))
                    except DataError:
                        path.unlink()
                try:
                    _fetched(partial, entry, where)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
                return _open_arrow(path, entry, str(path))
        except OSError as error:
            raise DataError(f"cannot write to data.cache {self.cache}: {error.strerror or error}") from error


def describe_split(root: Path | str, split: str, cache: str = "") -> Split:
    """What the shard folder `root` (path or URL) says of a split; no shard is opened.

    Raises `DataError` if `root` is no shard folder or of another format version, cannot be reached, or the
    split is not there.
    """
    root = str(root)
    root = root.rstrip("/") if is_remote(root) else str(local_path(root))
    content = read_description(root)
    splits = content["splits"]
    if split not in splits:
        raise DataError(
            f"no split '{split}' in {root}{nearest_name(split, splits)}; there: {', '.join(splits) or 'none'}"
            f"{_instead_of(split, splits)}"
        )
    if not _PLAIN_NAME.fullmatch(split):
        raise DataError(f"split '{split}' of {root} leaves its folder; ingest again")
    try:
        return _described(root, split, cache, content)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{root}/{DESCRIPTION} is damaged ({error}); ingest again") from error


def read_description(root: str) -> dict[str, Any]:
    """The content of a shard folder's `dataset.json`, checked for format and version."""
    path = f"{root}/{DESCRIPTION}"
    if not is_remote(root) and not local_path(root).is_dir():
        raise DataError(f"no shard folder {root}; make one with jobs/ingest.py")
    try:
        text = read_remote(path) if is_remote(root) else local_path(path).read_bytes()
        content = json.loads(text)
    except FileNotFoundError as error:
        raise DataError(
            f"{root} is not a shard folder (it has no {DESCRIPTION}); make one with jobs/ingest.py"
        ) from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON; ingest again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} does not describe a shard folder; make one with jobs/ingest.py")
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{root} has shard format {content.get('format_version')}, this version reads "
            f"{FORMAT_VERSION}; ingest again"
        )
    if not isinstance(content.get("splits"), dict):
        raise DataError(f"{path} is damaged (no splits); ingest again")
    return content


def _instead_of(split: str, splits: Iterable[str]) -> str:
    if split.startswith("train"):
        return "; training takes another with --data.train_split NAME"
    other = next((name for name in splits if not name.startswith("train")), None)
    instead = f"training takes another with --data.val_split {other}; " if other else ""
    return f"; {instead}to take a fraction of train, ingest own data with --val-fraction 0.2"


def _described(root: str, split: str, cache: str, content: Mapping[str, Any]) -> Split:
    entry = content["splits"][split]
    shards = tuple(_shard_entry(root, split, shard) for shard in entry["shards"])
    size, total = int(entry["count"]), sum(shard.count for shard in shards)
    if total != size or any(shard.count < 1 for shard in shards):
        raise ValueError(f"split '{split}' has {size} records, its shards {total}")
    info = DatasetInfo(str(content["name"]), tuple(content["class_names"]))
    known = KNOWN.get(info.name)
    return Split(
        root=root,
        name=split,
        info=known if known and known.class_names == info.class_names else info,
        size=size,
        fingerprint=str(entry["fingerprint"]),
        class_counts=dict(entry["class_counts"]),
        shards=shards,
        pseudo_masks=entry.get("pseudo_masks"),
        cache=cache,
    )


def _shard_entry(root: str, split: str, shard: Mapping[str, Any]) -> ShardEntry:
    file, size = str(shard["file"]), shard.get("bytes")
    if not _PLAIN_NAME.fullmatch(file):
        raise DataError(f"shard '{file}' of {root}/{split} leaves its folder; ingest again")
    return ShardEntry(file, int(shard["count"]), None if size is None else int(size))


def _open_arrow(path: Path, entry: ShardEntry, where: str) -> Dataset:
    """Memory-map one local Arrow file and check it against its entry; `where` is its name in messages."""
    found = path.stat().st_size
    if entry.size is not None and found != entry.size:
        raise DataError(
            f"shard {where} has {found} bytes instead of {entry.size}; copy it again or ingest again"
        )
    try:
        shard = Dataset.from_file(str(path))
    except Exception as error:  # Arrow and datasets raise many kinds on damaged files
        raise DataError(f"shard {where} is damaged; copy it again or ingest again") from error
    if len(shard) != entry.count:
        raise DataError(
            f"shard {where} holds {len(shard)} records instead of {entry.count}; copy it again or "
            "ingest again"
        )
    return shard


def _fetched(path: Path, entry: ShardEntry, where: str) -> Dataset:
    try:
        fetch(where, path, entry.size)
    except FileNotFoundError as error:
        raise DataError(f"shard {where} is missing on the server; copy it again or ingest again") from error
    return _open_arrow(path, entry, where)
