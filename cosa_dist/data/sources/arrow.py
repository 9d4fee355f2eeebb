"""Arrow and Parquet files of Hugging Face datasets: which split they belong to, and single cells of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    concatenate_datasets,
    disable_progress_bars,
    load_dataset,
    load_from_disk,
)

from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.sources.record import File, unsafe_name
from cosa_dist.data.sources.split import split_in_file_name, split_name, usual_split


@dataclass(frozen=True)
class ArrowTable:
    """Memory-mapped Arrow files in their order, the folder that paths in them belong to, and their origin.

    `origin` is a text that changes when the files that the user has do.
    """

    files: tuple[str, ...]
    root: Path
    origin: str

    @property
    def name(self) -> str:
        """The first file, for messages."""
        return Path(self.files[0]).name

    def open(self) -> Dataset:
        """Return the rows, with pictures as they are stored; remembered in each process."""
        return _opened(self.files)


@dataclass(frozen=True, slots=True)
class ArrowCell:
    """A picture or mask in one cell: bytes, the HF image form, or a path below the table's folder."""

    table: ArrowTable
    column: str
    row: int

    @property
    def where(self) -> str:
        """File, row and column."""
        return f"{self.table.name}, row {self.row}, column {self.column}"

    def read(self) -> bytes:
        """Return the bytes; raises `RecordError` where there are none."""
        value = self._value()
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise RecordError("the cell holds neither picture bytes nor a path; name another column")
        root = str(self.table.root)
        name = os.path.relpath(value, root) if os.path.isabs(value) else value
        if reason := unsafe_name(name):
            raise RecordError(reason)
        return File(self.table.root, name).read()

    def identity(self) -> str:
        """The origin of the table, and the place in it."""
        return f"{self.table.origin} {self.column} {self.row}"

    def same_as(self, other: ArrowCell) -> bool:
        """Whether both cells hold the same bytes or the same path."""
        return bool(self._value() == other._value())

    def _value(self) -> Any:
        """Return the bytes or the path in the cell."""
        value = _column(self.table.files, self.column)[self.row][self.column]
        return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def holds_pictures(feature: Any) -> bool:
    """Whether a column holds pictures or their bytes, whatever wrote it."""
    if isinstance(feature, Value):
        return "binary" in feature.dtype
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def rows_without(opened: Dataset, column: str) -> frozenset[int]:
    """Return the rows whose cell holds no picture; only looks at which cells are there."""
    cells = opened.data.column(column)
    missing = pc.is_null(cells)
    if pa.types.is_struct(cells.type):
        fields = [pc.is_null(pc.struct_field(cells, name)) for name in ("bytes", "path")]
        missing = pc.or_(missing, pc.and_(*fields))
    return frozenset(np.flatnonzero(missing.to_numpy()).tolist())


def open_tables(path: Path, cache: Path) -> dict[str, ArrowTable]:
    """Return the tables of a dataset by split; the split is empty where the dataset names none.

    Args:
        path: a folder of `save_to_disk`, a folder of Parquet or Arrow files, or one such file.
        cache: folder for the Arrow form of Parquet files.

    Raises:
        DataError: there is no dataset, or it is damaged.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path)
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    groups: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix in (".parquet", ".arrow") and file.is_file():
            split = split_in_file_name(file.stem)
            if split is None and path.is_dir():
                split = usual_split(file.parent.name)
            groups.setdefault(split or "", []).append(file)
    if not groups:
        raise DataError(
            f"no Hugging Face dataset in {path}: neither save_to_disk's files nor Parquet or Arrow"
        )
    if "" in groups and len(groups) > 1:
        raise DataError(
            f"{groups[''][0]} belongs to no split, others do; begin its name with train, val or test"
        )
    return {split: _table(group, root, cache) for split, group in groups.items()}


def _saved(path: Path) -> dict[str, ArrowTable]:
    """Return the tables of a folder that `save_to_disk` wrote."""
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # a damaged folder gives many kinds
        raise DataError(f"{path} cannot be opened as a saved dataset ({error}); save it again") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {"": loaded}
    tables = {}
    for split, dataset in splits.items():
        files = [Path(str(file["filename"])) for file in dataset.cache_files]
        if len(dataset):
            if (name := split_name(str(split))) in tables:
                raise DataError(f"{path}: split '{split}' is a second split '{name}'; rename one of them")
            tables[name] = ArrowTable(tuple(map(str, files)), path, _origin(files))
    if not tables:
        raise DataError(f"{path} has no rows")
    return tables


def _table(files: list[Path], root: Path, cache: Path) -> ArrowTable:
    """Return the table of some files of one kind; Parquet is turned into Arrow in `cache`."""
    kinds = {file.suffix for file in files}
    if len(kinds) > 1:
        raise DataError(f"{files[0].parent} mixes Arrow and Parquet files of one split; keep one kind")
    _refuse_other_columns(files, kinds == {".parquet"})
    arrow = files
    if kinds == {".parquet"}:
        disable_progress_bars()
        try:
            loaded = load_dataset(
                "parquet", data_files=list(map(str, files)), split="train", cache_dir=str(cache)
            )
        except Exception as error:  # damaged files give many kinds
            reason = _first_line(error.__cause__ or error)
            raise DataError(f"Parquet of {files[0].parent} cannot be read ({reason})") from error
        arrow = [Path(str(file["filename"])) for file in loaded.cache_files]
    return ArrowTable(tuple(map(str, arrow)), root, _origin(files))


def _refuse_other_columns(files: Sequence[Path], parquet: bool) -> None:
    """Raise `DataError` if a file of a split is damaged, or has other columns or numbers of classes."""
    first: Features | None = None
    for file in files:
        try:
            schema = pq.read_schema(file) if parquet else Dataset.from_file(str(file)).data.schema
            features = Features.from_arrow_schema(schema)
        except Exception as error:  # damaged files give many kinds
            what = "Parquet file" if parquet else "Arrow file"
            raise DataError(f"{what} {file} is damaged ({_first_line(error)}); get it again") from error
        first = first or features
        pair = f"{files[0].name} and {file.name} of {file.parent}"
        if set(first) != set(features):
            names = ", ".join(sorted(set(first) ^ set(features)))
            raise DataError(
                f"{pair} are one split, but only one has {names}; give all files the same columns"
            )
        for name in first:
            kinds = [_kind(one[name]) for one in (first, features)]
            if kinds[0] == kinds[1] or "null" in kinds:
                continue
            what = "hold other things in"
            if all("ClassLabel" in kind for kind in kinds):
                what = "number the classes differently in"
            raise DataError(f"{pair} {what} column '{name}'; write all files of a split alike")


def _kind(feature: Any) -> str:
    """Return what a column holds as a text, numbers and texts of all widths alike."""
    if holds_pictures(feature):
        return "pictures"
    return re.sub(r"large_|Large|u?(int|float)\d+", r"\1", str(feature))


@lru_cache(maxsize=8)
def _opened(files: tuple[str, ...]) -> Dataset:
    """Memory-map Arrow files as one dataset whose pictures stay undecoded."""
    try:
        parts = [Dataset.from_file(file) for file in files]
    except Exception as error:  # damaged files give many kinds
        raise DataError(f"Arrow file {files[0]} or one after it is damaged ({_first_line(error)})") from error
    try:
        dataset = concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(
            f"Arrow file {files[0]} and those after it hold other kinds of columns; write them alike "
            f"({_first_line(error):.200})"
        ) from error
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


@lru_cache(maxsize=16)
def _column(files: tuple[str, ...], column: str) -> Dataset:
    """Return one column of a table, so that reading a cell reads no other."""
    return _opened(files).select_columns([column])


def _origin(files: list[Path]) -> str:
    """Return paths, sizes and times of files as a text."""
    states = ((file, file.stat()) for file in files)
    return " ".join(f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}" for file, state in states)


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
