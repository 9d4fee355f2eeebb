"""A Hugging Face dataset on this disk, saved by `save_to_disk` or as Parquet or Arrow files.

Pictures and masks are read from memory-mapped Arrow, one cell at a time. Parquet files are turned into Arrow
once, in a cache folder. Labels are one or more columns of class labels, numbers, names, or lists of them;
without one, tags come from the masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from datasets import ClassLabel, LargeList, List, Value

from cosa_dist.data.catalog import DatasetInfo, is_no_class
from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.sources.arrow import ArrowCell, ArrowTable, holds_pictures, open_tables
from cosa_dist.data.sources.classes import class_names_of, tag_indices
from cosa_dist.data.sources.record import (
    TRAIN,
    Entry,
    SourceOptions,
    SourceRecord,
    Tags,
    find_column,
    seeded_validation,
    train_and_val,
    unsafe_id,
)
from cosa_dist.data.sources.tags import columns_tags, flags_found, settled, shown, text_of, united

_LABEL_COLUMNS = ("labels", "label", "tags")
_MASK_COLUMNS = ("masks", "segmentation_mask", "segmentation", "annotation", "annotations", "gt", "label_map")


@dataclass(frozen=True)
class HfColumns:
    """Names of the columns; None takes the usual ones where they are there."""

    image: str | None = None
    labels: tuple[str, ...] = ()
    mask: str | None = None
    id: str | None = None


def hf_source(
    path: Path, cache: Path, options: SourceOptions, columns: HfColumns | None = None
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a Hugging Face dataset; return the data set and its entries by split.

    `path` and `cache` are as in `open_tables`. Raises `DataError` if there is no dataset, a column is
    missing, there are neither labels nor class names, or labels can be read in two ways.
    """
    tables = open_tables(path, cache)
    listed = [pair for table in tables.values() for pair in table.open().features.items()]
    features = dict(sorted(listed, key=lambda pair: pair[1] != Value("null")))  # what is not null counts
    image, found = _columns_of(path, tables, features, columns or HfColumns(), options)
    read = _Dataset(path, tables, features, image, found, options)
    read.check_kinds()
    known = read.class_label_names()
    tags, flags = read.tags(known)
    if options.classes:
        names = options.classes
    elif not found.labels:
        raise DataError(f"{path} has masks but no labels: give the class names with --classes FILE")
    elif known.keys() >= set(found.labels):
        names = tuple(dict.fromkeys(chain(*known.values())))
    else:
        names = class_names_of(tags, str(path), flags)
    info, rest = DatasetInfo(path.resolve().stem, names), iter(tags)
    entries: dict[str, list[Entry]] = {}
    for split, table in tables.items():
        own_tags = list(islice(rest, len(table.open())))
        listed = list(read.entries(split or TRAIN, table, own_tags, names))
        if again := len(own_tags) - len(listed):
            said = f"{again} rows name a picture again; their tags are united"
            options.note(f"split '{split or TRAIN}': {said}")
        if split:
            entries[split] = listed
        else:
            entries |= train_and_val(listed, seeded_validation([{e.id for e in listed}], options))
    return info, entries


def _columns_of(
    path: Path,
    tables: Mapping[str, ArrowTable],
    features: Mapping[str, Any],
    asked: HfColumns,
    options: SourceOptions,
) -> tuple[str, HfColumns]:
    """Return the column of pictures, and all those that are read; raises `DataError` for one not there."""
    there, where = list(features), str(path)
    pictures = [name for name, kind in features.items() if holds_pictures(kind)]
    others = [name for name in pictures if name not in (asked.mask, "mask", *_MASK_COLUMNS, *_LABEL_COLUMNS)]
    usual = ("image", "img", "picture", *(others if len(others) == 1 else ()))
    has = f"{path} has columns {', '.join(there):.300}"
    image = find_column(asked.image, usual, there, where, "--image-column")
    if image is None:
        raise DataError(f"{has}; say which holds pictures: --image-column")
    masks = [name for name in (*_MASK_COLUMNS, *_LABEL_COLUMNS) if name in pictures and name != image]
    mask = find_column(asked.mask, ("mask", *masks), features, where, "--mask-column")
    if mask and mask not in (asked.mask, "mask"):
        options.note(f"column '{mask}' holds pictures: they are taken as the masks")
    named = [find_column(name.strip(), (), there, where, "--labels-column") for name in asked.labels]
    usual_labels = [name for name in _LABEL_COLUMNS if name in there and name not in (*pictures, mask)]
    labels = tuple(filter(None, named or usual_labels[:1]))
    if not labels and mask is None:
        rest = [name for name in there if name != image and _holds_tags(features[name])]
        cells = {
            name: _cells(tables.values(), name)
            for name in rest
            if all(name in table.open().column_names for table in tables.values())
        }
        labels = flags_found(cells, f"{has}; say which holds tags: --labels-column", options)
    own_id = find_column(asked.id, ("id", "image_id"), there, where, "--id-column")
    return image, HfColumns(image, labels, mask, own_id)


@dataclass(frozen=True)
class _Dataset:
    """The tables of all splits, what their columns hold, and which of them are read."""

    path: Path
    tables: Mapping[str, ArrowTable]
    features: Mapping[str, Any]
    image: str
    columns: HfColumns
    options: SourceOptions

    def check_kinds(self) -> None:
        """Raise `DataError` unless each split has the columns, and in them what they are taken for.

        Only masks may be in other splits alone, if there are labels.
        """
        mask, labels = self.columns.mask, self.columns.labels
        for name in filter(None, (self.image, mask, self.columns.id, *labels)):
            for split, table in self.tables.items():
                if name not in table.open().column_names and not (name == mask and labels):
                    cure = "add it, or leave the split out"
                    raise DataError(f"split '{split}' of {self.path} has no column '{name}'; {cure}")
                if name not in table.open().column_names:
                    self.options.note(f"split '{split}' has no column '{name}': its pictures have no mask")
            if said := self._other_kind(name, self.features[name]):
                raise DataError(f"column '{name}' of {self.path} holds {said}")

    def _other_kind(self, name: str, feature: Any) -> str:
        """Return what a column holds and what to do, if it is not what it is taken for."""
        if name in self.columns.labels and not _holds_tags(feature):
            masks = "pictures, not tags: --mask-column names masks" if holds_pictures(feature) else "no tags"
            return f"{masks}; name that of tags with --labels-column"
        if name == self.columns.id and not isinstance(feature, Value):
            return "no ids; name another with --id-column"
        paths = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "null")
        if name in (self.image, self.columns.mask) and not (paths or holds_pictures(feature)):
            return "neither pictures nor their paths; name another"
        return ""

    def class_label_names(self) -> dict[str, tuple[str, ...]]:
        """Return the classes of each label column of class labels.

        Raises `DataError` if there are masks, and background is not the first, so that the ids are open.
        """
        known: dict[str, tuple[str, ...]] = {}
        for label in self.columns.labels:
            if not isinstance(kind := _inner(self.features[label]), ClassLabel):
                continue
            late = next((name for name in kind.names[1:] if is_no_class(name)), None)
            if late and self.columns.mask and self.options.classes is None:
                raise DataError(
                    f"class '{late}' of column '{label}' is not the first, so the ids of the masks are open: "
                    "give the classes in the order of the masks' ids with --classes FILE"
                )
            known[label] = tuple(name for name in kind.names if not is_no_class(name))
        return known

    def tags(self, known: Mapping[str, Sequence[str]]) -> tuple[list[Tags], Tags]:
        """Return the tags of all rows of all splits, and the columns that are classes."""
        flags: Tags = ()
        tables = self.tables.values()
        if not self.columns.labels:
            return [()] * sum(len(table.open()) for table in tables), flags
        cells = {label: list(_cells(tables, label)) for label in self.columns.labels}
        named = [[_class_label_tags(_inner(self.features[k]), cell) for cell in cells.pop(k)] for k in known]
        if cells:
            read, flags = columns_tags(cells, self.options)
            named.append(read)
        rows = [said[0] if len(said) == 1 else united(said) for said in zip(*named, strict=True)]
        *tags, flags = settled([*rows, flags], self.options, list(chain(*known.values())))
        return tags, flags

    def entries(
        self, split: str, table: ArrowTable, tags: Sequence[Tags], class_names: Sequence[str]
    ) -> Iterator[Entry]:
        """Yield the records of one table, rows of one picture as one."""
        indices, labels = tag_indices(class_names), self.columns.labels
        mask = self.columns.mask if self.columns.mask in table.open().column_names else None
        unmasked = table.rows_without(mask) if mask else frozenset[int]()
        for name, rows in self._rows_by_picture(table).items():
            pictures = [ArrowCell(table, self.image, row) for row in rows]
            masks = [ArrowCell(table, mask, row) for row in rows if mask and row not in unmasked]
            own_id = name if isinstance(name, str) else ""
            record_id = own_id if self.columns.id else f"{split}_{rows[0]:08d}"
            reason = unsafe_id(record_id) if record_id else "row has no id; give every picture one"
            for what, cells in (("pictures", pictures), ("masks", masks)):
                if any(other.value() != cells[0].value() for other in cells[1:]):
                    reason = reason or f"rows of this picture have several {what}; keep one"
            found = indices(reason or united(tags[row] for row in rows))
            if isinstance(found, str):
                yield Rejection(record_id or f"row {rows[0]}", found, f"{table.name}, row {rows[0]}")
            else:
                mask_cell = masks[0] if masks else None
                yield SourceRecord(record_id, pictures[0], mask_cell, found if labels else None)

    def _rows_by_picture(self, table: ArrowTable) -> dict[str | int, list[int]]:
        """Return the rows of each id, of each path where there are no ids, else each row."""
        paths = isinstance(feature := table.open().features[self.image], Value) and "string" in feature.dtype
        key = self.columns.id or (self.image if paths else None)
        groups: dict[str | int, list[int]] = {}
        names = table.cells(key) if key else repeat(None, len(table.open()))
        for row, name in enumerate(map(text_of, names)):
            groups.setdefault(name or row, []).append(row)
        return groups


def _cells(tables: Iterable[ArrowTable], column: str) -> Iterator[Any]:
    return chain.from_iterable(table.cells(column) for table in tables)


def _inner(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List | LargeList) else feature


def _holds_tags(feature: Any) -> bool:
    inner = _inner(feature)
    return isinstance(inner, ClassLabel) or (isinstance(inner, Value) and "binary" not in inner.dtype)


def _class_label_tags(feature: ClassLabel, value: Any) -> Tags:
    """Return the names of the class labels in a cell, -1 being none, or why there are none."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int | None) for number in numbers):
        return f"class labels are no numbers: {shown(value)}; mend the row"
    try:
        return tuple(dict.fromkeys(feature.int2str(n) for n in numbers if n is not None and n >= 0))
    except ValueError:
        return f"class label {shown(value)} is outside 0..{feature.num_classes - 1}; mend the row"
