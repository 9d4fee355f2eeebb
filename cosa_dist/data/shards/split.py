"""Records of shards, and `mapped` reading: any record at once.

A folder holds `dataset.json` and `<split>/shard-00000-of-00008.arrow`, Arrow files of Hugging Face
`datasets`. A mapped split is memory-mapped: it costs no memory, and a copy that goes to a loader's worker
opens the files anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Image, List, Value, concatenate_datasets
from numpy.typing import NDArray

from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.description import Split, describe_split
from cosa_dist.data.shards.remote import is_remote

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
