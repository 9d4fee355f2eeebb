"""A split of a shard folder, local or at a URL: what `dataset.json` says of it, its files and its records.

All names in `dataset.json` are checked before they become part of a path: nothing outside the folder is read.
Local shards are memory-mapped where they lie. Remote ones are fetched whole, either into the cache folder,
which the processes of a node share and later runs read again, or into a temporary file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets
from filelock import FileLock
from numpy.typing import NDArray

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.shards.remote import fetch, is_remote, local_path, read_remote

DESCRIPTION = "dataset.json"
FORMAT = "cosa_dist shards"
FORMAT_VERSION = 1

_PLAIN_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
TRAINING_COLUMNS = ("id", "image", "labels", "width", "height")
MASK_COLUMNS = ("mask", "reliability")
"""read as well by training on masks, as far as they are there"""


@dataclass(frozen=True)
class Record:
    """One record as stored; `labels` is a multi-hot `[C]` float32 array."""

    id: str
    image: bytes
    labels: NDArray[np.float32]
    width: int
    height: int
    mask: bytes | None = None
    context: bytes | None = None
    reliability: bytes | None = None
    """of the mask's pixels, 0..255 for 0..1; pseudo-masks only"""


def record_features(class_names: tuple[str, ...], with_context: bool) -> Features:
    """The columns of a shard; labels are 0-based foreground indices."""
    columns: dict[str, Any] = {
        "id": Value("string"),
        "image": Image(decode=False),
        "mask": Image(decode=False),
        "labels": List(ClassLabel(names=list(class_names))),
        "width": Value("int32"),
        "height": Value("int32"),
    }
    if with_context:
        columns["context"] = Image(decode=False)
    return Features(columns)


def record_of(row: Mapping[str, Any], num_foreground: int) -> Record:
    """A stored row as a record; columns that were not read are None."""
    labels = np.zeros(num_foreground, dtype=np.float32)
    labels[row["labels"]] = 1.0
    pictures = {
        name: column["bytes"]
        for name in ("image", "mask", "context", "reliability")
        if (column := row.get(name)) is not None
    }
    return Record(id=row["id"], labels=labels, width=row["width"], height=row["height"], **pictures)


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


class MappedSplit(Split):
    """A split whose shards are all memory-mapped; make it with `open_split`."""

    def __init__(self, split: Split) -> None:
        super().__init__(**vars(split))
        self._all = concatenate_datasets([self.open_shard(number) for number in range(len(self.shards))])
        self._training = self._all.select_columns(list(TRAINING_COLUMNS))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_split, (self.root, self.name, self.cache)

    def record(self, index: int, *, annotations: bool = True) -> Record:
        """Record `index`, 0 .. size - 1; without `annotations` its masks are not read (training on tags)."""
        if not 0 <= index < self.size:
            raise IndexError(f"split '{self.name}' has records 0..{self.size - 1}; got {index}")
        row = (self._all if annotations else self._training)[int(index)]
        return record_of(row, self.info.num_foreground)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids in record order."""
        return tuple(self._all["id"])

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Whole columns in record order, such as `width`, `height` and `labels`."""
        chosen = self._all.select_columns(list(names))
        return {name: list(chosen[name]) for name in names}

    @property
    def mask_count(self) -> int:
        """Number of records that have a mask."""
        return self.size - int(self._all.data.column("mask").null_count)


def open_split(root: Path | str, split: str, cache: str = "") -> MappedSplit:
    """Open a split of the shard folder `root` (path or URL), memory-mapped; `cache` holds remote shards.

    Raises `DataError` if `root` is no shard folder or of another format version, the split is not there, a
    shard is missing or damaged, or the shards are remote and there is no cache.
    """
    described = describe_split(root, split, cache)
    if is_remote(described.root) and not cache:
        raise DataError(
            f"{root} is not on this machine: read it with --data.reading streaming, or give "
            "--data.cache FOLDER for local copies"
        )
    return MappedSplit(described)


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
