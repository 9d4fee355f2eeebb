"""A Hugging Face dataset on this disk, saved by `save_to_disk` or as Parquet or Arrow files.

Pictures and masks are read from memory-mapped Arrow, one cell at a time. Parquet files are turned
into Arrow once, in a cache folder. Labels are one or more columns of class labels, numbers, names, or
lists of them; without one, tags come from the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, RecordError, nearest_name
from cosa_dist.data.source_arrow import ArrowCell, ArrowTable, open_tables
from cosa_dist.data.source_classes import TagIndex, class_names_of
from cosa_dist.data.source_record import Entry, Rejection, SourceRecord, Tell, unsafe_id, untold
from cosa_dist.data.source_split import TRAIN, VAL, seeded_validation
from cosa_dist.data.source_table import tags_of_cell

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class HfColumns:
    """Names of the columns; None takes the usual ones where they are there."""

    image: str | None = None
    labels: tuple[str, ...] | None = None
    mask: str | None = None
    id: str | None = None


def hf_source(
    path: Path,
    cache: Path,
    *,
    columns: HfColumns | None = None,
    classes: tuple[str, ...] | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    tell: Tell = untold,
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a Hugging Face dataset; return the data set and its entries by split.

    Args:
        path: a folder of `save_to_disk`, a folder of Parquet or Arrow files, or one such file.
        cache: folder for the Arrow form of Parquet files; only made if there are some.
        columns: their names.
        classes: class names in id order; None takes those of the class labels, or those that occur.
        val_share: share that is for validation where the dataset has no splits.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: no dataset there, a column is missing, or there are neither labels nor class names.
    """
    tables = open_tables(path, cache)
    opened = {split: table.open() for split, table in tables.items()}
    first = next(iter(opened.values()))
    found = _columns_of(path, first, columns or HfColumns())
    names = classes or _class_names(path, opened, found)
    info = DatasetInfo(path.resolve().stem, names)
    index = TagIndex(info.class_names)
    entries: dict[str, list[Entry]] = {}
    for split, table in tables.items():
        listed = list(_entries(split or TRAIN, table, opened[split], found, index))
        if split:
            entries[split] = listed
            continue
        chosen = seeded_validation({entry.id for entry in listed}, val_share, seed)
        entries[TRAIN] = [entry for entry in listed if entry.id not in chosen]
        if chosen:
            entries[VAL] = [entry for entry in listed if entry.id in chosen]
    return info, entries


def label_names(feature: Any, value: Any) -> tuple[str, ...]:
    """Return the names in a label cell; a class label of -1 is none.

    Args:
        feature: the column's HF feature.
        value: the cell.

    Raises:
        RecordError: the cell holds no label.
    """
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    if not isinstance(inner, ClassLabel):
        return tags_of_cell(value)
    numbers = value if isinstance(value, list) else [value]
    try:
        return tuple(inner.int2str(number) for number in numbers if number is not None and number >= 0)
    except ValueError as error:
        raise RecordError(
            f"class label {value} is outside 0..{inner.num_classes - 1}; mend the row"
        ) from error


def _entries(
    split: str, table: ArrowTable, opened: Dataset, columns: HfColumns, index: TagIndex
) -> Iterator[Entry]:
    """Yield the records of one table; only labels and ids are read."""
    small = opened.select_columns([*(columns.labels or ()), *([columns.id] if columns.id else [])])
    features = opened.features
    for row, cells in enumerate(_rows(small, len(opened))):
        record_id = str(cells[columns.id]) if columns.id else f"{split}_{row:08d}"
        if reason := unsafe_id(record_id):
            yield Rejection(record_id, reason, f"{table.name}, row {row}")
            continue
        try:
            tags = None
            if columns.labels:
                found = (label_names(features[label], cells[label]) for label in columns.labels)
                tags = index(name for names in found for name in names)
        except RecordError as error:
            yield Rejection(record_id, str(error), f"{table.name}, row {row}")
            continue
        image = ArrowCell(table, columns.image or "", row)
        mask = ArrowCell(table, columns.mask, row) if columns.mask else None
        yield SourceRecord(record_id, image, mask, tags)


def _rows(small: Dataset, count: int) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a few columns, many at a time; without columns, as many empty rows."""
    if not small.column_names:
        yield from ({} for _ in range(count))
        return
    for start in range(0, count, _ROWS_AT_ONCE):
        block = small[start : start + _ROWS_AT_ONCE]
        for cells in zip(*block.values(), strict=True):
            yield dict(zip(block, cells, strict=True))


def _columns_of(path: Path, opened: Dataset, asked: HfColumns) -> HfColumns:
    """Return the names of the columns that there are; raises `DataError` for one that is not."""
    there = opened.column_names

    def column(name: str | None, usual: Sequence[str]) -> str | None:
        if name is None:
            return next((usual_name for usual_name in usual if usual_name in there), None)
        if name not in there:
            known = ", ".join(there)
            raise DataError(f"{path} has no column '{name}'{nearest_name(name, there)}; there: {known}")
        return name

    image = column(asked.image, ("image", "img", "picture"))
    if image is None:
        raise DataError(f"{path} has columns {', '.join(there)}; say which holds pictures: --image-column")
    mask = column(asked.mask, ("mask",))
    labels = tuple(filter(None, (column(name, ()) for name in asked.labels or ())))
    usual_label = column(None, ("labels", "label", "tags"))
    labels = labels or ((usual_label,) if usual_label else ())
    if not labels and mask is None:
        raise DataError(f"{path} has columns {', '.join(there)}; say which holds tags: --labels-column")
    return HfColumns(image, labels, mask, column(asked.id, ("id", "image_id")))


def _class_names(path: Path, opened: Mapping[str, Dataset], columns: HfColumns) -> tuple[str, ...]:
    """Return the names of the class labels if all label columns are such, else those that occur."""
    first = next(iter(opened.values()))
    known: list[tuple[str, ...]] = []
    for label in columns.labels or ():
        feature = first.features[label]
        inner = feature.feature if isinstance(feature, List | LargeList) else feature
        known.append(tuple(inner.names) if isinstance(inner, ClassLabel) else ())
    if not known:
        raise DataError(f"{path} has masks but no labels: give the class names with --classes FILE")
    if all(known):
        return tuple(dict.fromkeys(name for names in known for name in names))
    return class_names_of(_all_tags(opened, columns), str(path))


def _all_tags(opened: Mapping[str, Dataset], columns: HfColumns) -> Iterator[tuple[str, ...]]:
    """Yield the tags of all rows that have readable ones."""
    for dataset in opened.values():
        for row in _rows(dataset.select_columns(list(columns.labels or ())), len(dataset)):
            for label, value in row.items():
                try:
                    yield label_names(dataset.features[label], value)
                except RecordError:
                    continue  # the row is rejected, with its number, when the entries are made
