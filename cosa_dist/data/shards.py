"""Shard folders: opening a split of Arrow files and reading its records.

A folder holds `dataset.json` (name, classes and, per split, counts, shards and a fingerprint of the
content) and `<split>/shard-00000-of-00008.arrow`, Arrow files of Hugging Face `datasets`. They are
memory-mapped: a split costs no memory, and a copy that goes to a loader's worker opens the files
anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets
from numpy.typing import NDArray

from cosa_dist.data.catalog import KNOWN, DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name

DESCRIPTION = "dataset.json"
FORMAT = "cosa_dist shards"
FORMAT_VERSION = 1

_TRAINING_COLUMNS = ("id", "image", "labels", "width", "height")


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


def record_features(class_names: tuple[str, ...], with_context: bool) -> Features:
    """Return the columns of a shard; labels are 0-based foreground indices."""
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


class Split:
    """One split of a shard folder; make it with `open_split`.

    Attributes:
        root: the shard folder.
        name: the split's name.
        info: data set name and classes.
        size: number of records.
        fingerprint: hash of ids, pictures, masks and tags in their order, the same wherever it
            lies.
        class_counts: number of records per class name.
    """

    def __init__(self, root: Path, name: str, description: Mapping[str, Any]) -> None:
        entry = description["splits"][name]
        self.root = root
        self.name = name
        self.info = _info(description)
        self.size = int(entry["count"])
        self.fingerprint = str(entry["fingerprint"])
        self.class_counts: dict[str, int] = dict(entry["class_counts"])
        self._all = concatenate_datasets(
            [_open_shard(root / name, shard["file"], shard["count"]) for shard in entry["shards"]]
        )
        self._training = self._all.select_columns(list(_TRAINING_COLUMNS))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_split, (self.root, self.name)

    def __len__(self) -> int:
        return self.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C foreground class names in id order."""
        return self.info.class_names

    def record(self, index: int, *, annotations: bool = True) -> Record:
        """Read record `index`.

        Args:
            index: 0 .. size - 1.
            annotations: False leaves masks unread, as training on tags must.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"split '{self.name}' has records 0..{self.size - 1}; got {index}")
        row = (self._all if annotations else self._training)[int(index)]
        labels = np.zeros(self.info.num_foreground, dtype=np.float32)
        labels[row["labels"]] = 1.0
        return Record(
            id=row["id"],
            image=row["image"]["bytes"],
            labels=labels,
            width=row["width"],
            height=row["height"],
            mask=_bytes(row.get("mask")),
            context=_bytes(row.get("context")),
        )

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids in record order."""
        return tuple(self._all["id"])


def open_split(root: Path | str, split: str) -> Split:
    """Open a split of the shard folder `root`, memory-mapped.

    Raises:
        DataError: `root` is no shard folder or of another format version, the split is not there,
            or
            a shard is missing or damaged.
    """
    root = Path(root)
    description = read_description(root)
    splits = description["splits"]
    if split not in splits:
        raise DataError(
            f"no split '{split}' in {root}{nearest_name(split, splits)}; there: {', '.join(splits) or 'none'}"
        )
    try:
        return Split(root, split, description)
    except (KeyError, TypeError) as error:
        raise DataError(f"{root / DESCRIPTION} is damaged ({error}); ingest again") from error


def read_description(root: Path) -> dict[str, Any]:
    """Return the content of a shard folder's `dataset.json`, checked for format and version.

    Raises:
        DataError: no folder, no description, or not one that this version reads.
    """
    if not root.is_dir():
        raise DataError(f"no shard folder {root}; make one with jobs/ingest.py")
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{root} is not a shard folder (it has no {DESCRIPTION}); make one with jobs/ingest.py"
        ) from error
    except ValueError as error:
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


def _info(description: Mapping[str, Any]) -> DatasetInfo:
    """Return the data set's entry: names from the shards, sizes where they are known."""
    name, classes = str(description["name"]), tuple(description["class_names"])
    known = KNOWN.get(name)
    return known if known and known.class_names == classes else DatasetInfo(name, classes)


def _open_shard(folder: Path, file: str, count: int) -> Dataset:
    """Memory-map one Arrow file; raises `DataError` if it is missing, damaged or of another length."""
    path = folder / file
    if Path(file).name != file:
        raise DataError(f"shard '{file}' of {folder} leaves its folder; ingest again")
    if not path.is_file():
        raise DataError(f"shard {path} is missing; copy it again or ingest again")
    try:
        shard = Dataset.from_file(str(path))
    except Exception as error:  # Arrow and datasets raise many kinds on damaged files
        raise DataError(f"shard {path} is damaged; copy it again or ingest again") from error
    if len(shard) != count:
        raise DataError(
            f"shard {path} holds {len(shard)} records instead of {count}; copy it again or ingest again"
        )
    return shard


def _bytes(column: Mapping[str, Any] | None) -> bytes | None:
    """Return the bytes of an HF image column."""
    return None if column is None else column["bytes"]
