"""`dataset.json`: what a shard folder says of itself, read from a local folder or a URL.

It gives name and classes and, per split, the counts, the shards and a fingerprint of the content. All names
in it are checked before they become part of a path, so nothing outside the folder is ever read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.shards.remote import is_remote, local_path, read_remote

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
class SplitDescription:
    """One split as its shard folder describes it."""

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
    pseudo_masks: dict[str, Any] | None = None
    """what made the masks, if a network did: run, checkpoint and settings; None for true ones"""


def describe_split(root: str, split: str) -> SplitDescription:
    """What the shard folder `root` (path or URL) says of a split; no shard is opened.

    Raises `DataError` if `root` is no shard folder or of another format version, cannot be reached, or the
    split is not there.
    """
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
        return _described(root, split, content)
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
    return f"; {instead}to take a share of train, ingest own data with --val-fraction 0.2"


def _described(root: str, split: str, content: Mapping[str, Any]) -> SplitDescription:
    entry = content["splits"][split]
    shards = tuple(_shard_entry(root, split, shard) for shard in entry["shards"])
    size, total = int(entry["count"]), sum(shard.count for shard in shards)
    if total != size or any(shard.count < 1 for shard in shards):
        raise ValueError(f"split '{split}' has {size} records, its shards {total}")
    info = DatasetInfo(str(content["name"]), tuple(content["class_names"]))
    known = KNOWN.get(info.name)
    return SplitDescription(
        root=root,
        name=split,
        info=known if known and known.class_names == info.class_names else info,
        size=size,
        fingerprint=str(entry["fingerprint"]),
        class_counts=dict(entry["class_counts"]),
        shards=shards,
        pseudo_masks=entry.get("pseudo_masks"),
    )


def _shard_entry(root: str, split: str, shard: Mapping[str, Any]) -> ShardEntry:
    file, size = str(shard["file"]), shard.get("bytes")
    if not _PLAIN_NAME.fullmatch(file):
        raise DataError(f"shard '{file}' of {root}/{split} leaves its folder; ingest again")
    return ShardEntry(file, int(shard["count"]), None if size is None else int(size))
