"""Arrow and Parquet files of Hugging Face datasets: which split they belong to, and single cells of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
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
from cosa_dist.data.sources.record import File, split_in_file_name, split_name, unsafe_name, usual_split

_NULL = str(Value("null"))


@dataclass(frozen=True)
class ArrowTable:
    """Memory-mapped Arrow files, the folder of paths in them, and a text that changes with the files."""

    files: tuple[str, ...]
    root: Path
    origin: str

    @property
    def name(self) -> str:
        """The first file, for messages."""
        return Path(self.files[0]).name

    def open(self) -> Dataset:
        """Return the rows; remembered in each process."""
        return _opened(self.files)

    def cells(self, column: str) -> Iterator[Any]:
        """Yield the cells of a column as they are stored."""
        for chunk in self.open().data.column(column).iterchunks():
            yield from chunk.to_pylist()

    def rows_without(self, column: str) -> frozenset[int]:
        """Return the rows whose cell holds no picture; only looks at which cells are there."""
        cells = self.open().data.column(column)
        missing = pc.is_null(cells)
        if pa.types.is_struct(cells.type):
            fields = [pc.is_null(pc.struct_field(cells, name)) for name in ("bytes", "path")]
            missing = pc.or_(missing, pc.and_(*fields))
        return frozenset(np.flatnonzero(missing.to_numpy()).tolist())


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

    def value(self) -> Any:
        """Return the bytes or the path in the cell."""
        value = self.table.open().data.column(self.column)[self.row].as_py()
        return value.get("bytes") or value.get("path") if isinstance(value, dict) else value

    def read(self) -> bytes:
        """Return the bytes; raises `RecordError` where there are none."""
        value = self.value()
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise RecordError("the cell holds neither picture bytes nor a path; name another column")
        name = os.path.relpath(value, self.table.root) if os.path.isabs(value) else value
        if reason := unsafe_name(name):
            raise RecordError(reason)
        return File(self.table.root, name).read()

    def identity(self) -> str:
        """Return the origin of the table, and the place in it."""
        return f"{self.table.origin} {self.column} {self.row}"


def holds_pictures(feature: Any) -> bool:
    """Whether a column holds pictures or their bytes, whatever wrote it."""
    if isinstance(feature, Value):
        return "binary" in feature.dtype
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def open_tables(path: Path, cache: Path) -> dict[str, ArrowTable]:
    """Return the tables of a dataset by split; the split is empty where the dataset names none.

    `path` is a folder of `save_to_disk`, a folder of Parquet or Arrow files, or one such file; `cache` is for
    the Arrow form of Parquet files. Raises `DataError` if there is no dataset, or it is damaged.
    """
    root = path if path.is_dir() else path.parent
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    groups = _saved(path) if saved else _by_name(path)
    if not groups:
        raise DataError(f"no Hugging Face dataset in {path}: no rows of save_to_disk, Parquet or Arrow")
    _refuse_other_kinds(groups.values())
    return {split: _table(files, root, cache) for split, files in groups.items()}


def _saved(path: Path) -> dict[str, list[Path]]:
    """Return the Arrow files that `save_to_disk` wrote, by split."""
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # a damaged folder gives many kinds
        raise DataError(f"{path} cannot be opened as a saved dataset ({error}); save it again") from error
    groups: dict[str, list[Path]] = {}
    for split, dataset in (loaded if isinstance(loaded, DatasetDict) else {"": loaded}).items():
        if (name := split_name(str(split))) in groups:
            raise DataError(f"{path}: split '{split}' is a second split '{name}'; rename one of them")
        if len(dataset):
            groups[name] = _cached_files(dataset)
    return groups


def _by_name(path: Path) -> dict[str, list[Path]]:
    """Return Parquet and Arrow files by the split that their names or folders tell."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix in (".parquet", ".arrow") and file.is_file():
            of_folder = usual_split(file.parent.name) if path.is_dir() else None
            groups.setdefault(split_in_file_name(file.stem) or of_folder or "", []).append(file)
    if "" in groups and len(groups) > 1:
        cure = "begin its name with train, val or test"
        raise DataError(f"{groups[''][0]} belongs to no split, others do; {cure}")
    return groups


def _refuse_other_kinds(splits: Iterable[Sequence[Path]]) -> None:
    """Raise `DataError` if a file is damaged, or a column is not in all files of a split or alike in all."""
    known: dict[str, tuple[str, Path]] = {}
    for files in splits:
        columns = dict.fromkeys(_kinds(files[0]), "")
        for file in files:
            for name, kind in (columns | _kinds(file)).items():
                other_kind, other = known.setdefault(name, (kind, file))
                if _NULL in (kind, other_kind):
                    known[name] = (other_kind, other) if kind == _NULL else (kind, file)
                elif kind != other_kind:
                    numbered = "ClassLabel" in kind and "ClassLabel" in other_kind
                    what = "number the classes differently in" if numbered else "hold other things in"
                    raise DataError(f"{other} and {file} {what} column '{name}'; write all files alike")


def _table(files: list[Path], root: Path, cache: Path) -> ArrowTable:
    """Return the table of the files of a split; Parquet is turned into Arrow in `cache`."""
    states = ((file.resolve(), file.stat()) for file in files)
    origin = " ".join(f"{file}:{state.st_size}:{state.st_mtime_ns}" for file, state in states)
    if any(file.suffix == ".parquet" for file in files):
        disable_progress_bars()
        try:
            names = list(map(str, files))
            made = load_dataset("parquet", data_files=names, split="train", cache_dir=str(cache))
        except Exception as error:  # damaged files give many kinds
            reason = _first_line(error.__cause__ or error)
            raise DataError(f"Parquet of {files[0].parent} cannot be read ({reason})") from error
        files = _cached_files(made)
    return ArrowTable(tuple(map(str, files)), root, origin)


def _kinds(file: Path) -> dict[str, str]:
    """Return what the columns of a file hold as texts, numbers and texts of all widths alike."""
    try:
        parquet = file.suffix == ".parquet"
        schema = pq.read_schema(file) if parquet else Dataset.from_file(str(file)).data.schema
        features = Features.from_arrow_schema(schema)
    except Exception as error:  # damaged files give many kinds
        raise DataError(f"{file} is damaged ({_first_line(error)}); get it again") from error
    return {
        name: "pictures"
        if holds_pictures(feature)
        else re.sub(r"large_|Large|u?(int|float)\d+", r"\1", str(feature))
        for name, feature in features.items()
    }


@lru_cache(maxsize=8)
def _opened(files: tuple[str, ...]) -> Dataset:
    try:
        return concatenate_datasets([Dataset.from_file(file) for file in files])
    except Exception as error:  # damaged files give many kinds
        said = f"is damaged or holds other kinds of columns ({_first_line(error):.200}); write them alike"
        raise DataError(f"Arrow file {files[0]} or one after it {said}") from error


def _cached_files(dataset: Dataset) -> list[Path]:
    return [Path(str(file["filename"])) for file in dataset.cache_files]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
