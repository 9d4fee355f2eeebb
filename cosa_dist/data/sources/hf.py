"""A Hugging Face dataset on this disk, saved by `save_to_disk` or as Parquet or Arrow files.

Pictures and masks are read from memory-mapped Arrow, one cell at a time. Parquet files are turned
into Arrow once, in a cache folder. Labels are one or more columns of class labels, numbers, names, or
lists of them; without one, tags come from the masks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, RecordError, nearest_name
from cosa_dist.data.sources.arrow import ArrowCell, ArrowTable, holds_pictures, open_tables, rows_without
from cosa_dist.data.sources.cell import TagRules, shown, text_of
from cosa_dist.data.sources.classes import TagIndex, class_names_of
from cosa_dist.data.sources.flags import columns_tags, flags_found
from cosa_dist.data.sources.record import Entry, Rejection, SourceRecord, Tell, unsafe_id, untold
from cosa_dist.data.sources.split import TRAIN, VAL, seeded_validation
from cosa_dist.data.sources.tags import Tags, no_class, settled, united

_ROWS_AT_ONCE = 1000
_LABEL_COLUMNS = ("labels", "label", "tags")
_MASK_COLUMNS = ("masks", "segmentation_mask", "segmentation", "annotation", "annotations", "gt", "label_map")


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
    separator: str | None = None,
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
        separator: what is between two tags in a text; None takes `;`, `|` or `,`.
        val_share: share that is for validation where the dataset has no splits.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: no dataset there, a column is missing, there are neither labels nor class names, or
            labels can be read in two ways.
    """
    rules = TagRules(classes, separator, tell)
    tables = open_tables(path, cache)
    opened = {split: table.open() for split, table in tables.items()}
    found = _columns_of(path, opened, columns or HfColumns(), rules)
    known = _class_label_names(path, opened, found, rules)
    tags, flags = _all_tags(opened, found, rules, known)
    info = DatasetInfo(path.resolve().stem, classes or _names(path, tags, found, known, flags))
    index = TagIndex(info.class_names)
    entries: dict[str, list[Entry]] = {}
    for split, table in tables.items():
        listed = list(_entries(split or TRAIN, table, opened[split], found, tags[split], index))
        if again := len(opened[split]) - len(listed):
            tell(f"split '{split or TRAIN}': {again} rows name a picture again; their tags are united")
        if split:
            entries[split] = listed
            continue
        chosen = seeded_validation({entry.id for entry in listed}, val_share, seed)
        entries[TRAIN] = [entry for entry in listed if entry.id not in chosen]
        if chosen:
            entries[VAL] = [entry for entry in listed if entry.id in chosen]
    return info, entries


def class_label_tags(feature: ClassLabel, value: Any) -> Tags:
    """Return the names of the class labels in a cell, -1 being none, or why there are none."""
    numbers = value if isinstance(value, list) else [value]
    if not all(number is None or isinstance(number, int) for number in numbers):
        return f"class labels are no numbers: {shown(value)}; mend the row"
    try:
        return tuple(
            dict.fromkeys(feature.int2str(number) for number in numbers if number is not None and number >= 0)
        )
    except ValueError:
        return f"class label {shown(value)} is outside 0..{feature.num_classes - 1}; mend the row"


def _entries(
    split: str,
    table: ArrowTable,
    opened: Dataset,
    columns: HfColumns,
    tags: Sequence[Tags | None],
    index: TagIndex,
) -> Iterator[Entry]:
    """Yield the records of one table, rows of one picture as one."""
    mask = columns.mask if columns.mask in opened.column_names else None
    unmasked = rows_without(opened, mask) if mask else frozenset[int]()
    for record_id, rows in _rows_by_picture(split, table, opened, columns):
        where = f"{table.name}, row {rows[0]}"
        if reason := unsafe_id(record_id) if record_id else "row has no id; give every picture one":
            yield Rejection(record_id or f"row {rows[0]}", reason, where)
            continue
        masks = [ArrowCell(table, mask, row) for row in rows if mask and row not in unmasked]
        names = united(said for row in rows if (said := tags[row]) is not None)
        if any(not other.same_as(masks[0]) for other in masks[1:]):
            names = "rows of this picture have several masks; keep one"
        try:
            if isinstance(names, str):
                raise RecordError(names)
            found = index(names) if columns.labels else None
        except RecordError as error:
            yield Rejection(record_id, str(error), where)
            continue
        image = ArrowCell(table, columns.image or "", rows[0])
        yield SourceRecord(record_id, image, masks[0] if masks else None, found)


def _rows_by_picture(
    split: str, table: ArrowTable, opened: Dataset, columns: HfColumns
) -> list[tuple[str, list[int]]]:
    """Return the rows of each picture with its id: those of one id and picture, or of one path."""
    feature = opened.features[columns.image or ""]
    key = columns.id or (columns.image if isinstance(feature, Value) and "string" in feature.dtype else None)
    groups: list[tuple[str, list[int]]] = []
    first: dict[str, list[int]] = {}
    cells = opened.select_columns([key])[:][key] if key else [""] * len(opened)
    for row, name in enumerate(map(text_of, cells)):
        rows = first.get(name) if name else None
        if rows is not None and columns.id:
            pair = (ArrowCell(table, columns.image or "", place) for place in (rows[0], row))
            rows = rows if next(pair).same_as(next(pair)) else None
        if rows is not None:
            rows.append(row)
            continue
        groups.append((name if columns.id else f"{split}_{row:08d}", [row]))
        first.setdefault(name, groups[-1][1])
    return groups


def _columns_of(path: Path, opened: Mapping[str, Dataset], asked: HfColumns, rules: TagRules) -> HfColumns:
    """Return the names of the columns that there are; raises `DataError` for one that is not."""
    there = next(iter(opened.values())).column_names
    features = {name: kind for table in opened.values() for name, kind in table.features.items()}
    pictures = [name for name, kind in features.items() if holds_pictures(kind)]

    def column(name: str | None, usual: Sequence[str], known: Collection[str] = there) -> str | None:
        if name is None:
            return next((usual_name for usual_name in usual if usual_name in known), None)
        if name not in known:
            listed = f"{', '.join(known):.300}"
            raise DataError(f"{path} has no column '{name}'{nearest_name(name, known)}; there: {listed}")
        return name

    shots = [name for name in pictures if name not in (asked.mask, "mask", *_MASK_COLUMNS, *_LABEL_COLUMNS)]
    image = column(asked.image, ("image", "img", "picture", *(shots if len(shots) == 1 else ())))
    has = f"{path} has columns {', '.join(there):.300}"
    if image is None:
        raise DataError(f"{has}; say which holds pictures: --image-column")
    masks = [name for name in (*_MASK_COLUMNS, *_LABEL_COLUMNS) if name in pictures and name != image]
    mask = column(asked.mask, ("mask", *masks), features)
    if mask and mask not in (asked.mask, "mask"):
        rules.tell(f"column '{mask}' holds pictures: they are taken as the masks")
    labels = tuple(filter(None, (column(name.strip(), ()) for name in asked.labels or ())))
    usual = column(None, [name for name in _LABEL_COLUMNS if name not in (*pictures, mask)])
    labels = labels or ((usual,) if usual else ())
    if not labels and mask is None:
        others = [name for name in there if name != image and _holds_tags(features[name])]
        others = [name for name in others if all(name in table.column_names for table in opened.values())]
        tables = (table.select_columns(others).with_format("arrow") for table in opened.values() if others)
        rows = (row for table in tables for part in table.iter(_ROWS_AT_ONCE) for row in part.to_pylist())
        labels = flags_found(rows, others, f"{has}; say which holds tags: --labels-column", rules)
    found = HfColumns(image, labels, mask, column(asked.id, ("id", "image_id")))
    for split, table in opened.items():
        _check_kinds(path, split, table, found, rules)
    return found


def _check_kinds(path: Path, split: str, table: Dataset, columns: HfColumns, rules: TagRules) -> None:
    """Raise `DataError` unless a split has the columns, and in them what they are taken for.

    Only masks may be in other splits alone, if there are labels.
    """
    labels = columns.labels or ()
    for name in filter(None, (columns.image, columns.mask, columns.id, *labels)):
        if name not in table.column_names:
            if name == columns.mask and labels:
                rules.tell(f"split '{split}' has no column '{name}': its pictures have no mask")
                continue
            raise DataError(
                f"split '{split}' of {path} has no column '{name}'; add it, or leave the split out"
            )
        feature = table.features[name]
        if name in labels and not _holds_tags(feature):
            what = "pictures, not tags: --mask-column names masks" if holds_pictures(feature) else "no tags"
            raise DataError(f"column '{name}' of {path} holds {what}; name that of tags with --labels-column")
        if name == columns.id and not isinstance(feature, Value):
            raise DataError(f"column '{name}' of {path} holds no ids; name another with --id-column")
        paths = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "null")
        if name in (columns.image, columns.mask) and not (paths or holds_pictures(feature)):
            raise DataError(f"column '{name}' of {path} holds neither pictures nor their paths; name another")


def _inner(feature: Any) -> Any:
    """Return what a column holds, of lists their items."""
    return feature.feature if isinstance(feature, List | LargeList) else feature


def _holds_tags(feature: Any) -> bool:
    """Whether a column can hold tags: class labels, names, numbers, or lists of them."""
    inner = _inner(feature)
    return isinstance(inner, ClassLabel) or (isinstance(inner, Value) and "binary" not in inner.dtype)


def _class_label_names(
    path: Path, opened: Mapping[str, Dataset], columns: HfColumns, rules: TagRules
) -> dict[str, tuple[str, ...]]:
    """Return the classes of each label column of class labels, those of all splits in their order.

    Raises:
        DataError: class labels in one split only; or there are masks, and the ids that go with the names
            are not the same in all splits, or background is not the first.
    """
    known: dict[str, tuple[str, ...]] = {}
    for label in columns.labels or ():
        inner = {split: _inner(table.features[label]) for split, table in opened.items()}
        named = {split: kind.names for split, kind in inner.items() if isinstance(kind, ClassLabel)}
        if not named:
            continue
        if len(named) < len(inner):
            other = next(split for split in inner if split not in named)
            raise DataError(
                f"column '{label}' of {path} holds class labels, but not in split '{other}'; "
                "save all splits alike"
            )
        longest = max(named.values(), key=len)
        if columns.mask and rules.classes is None:
            late = next((name for name in longest[1:] if no_class(name)), None)
            said = late and f"class '{late}' of column '{label}' is not the first"
            if any(names != longest[: len(names)] for names in named.values()):
                said = f"the splits of {path} number the classes of '{label}' differently"
            if said:
                raise DataError(
                    f"{said}, so the ids of the masks are open: give the classes in the order of the masks' "
                    "ids with --classes FILE"
                )
        names = dict.fromkeys(name for listed in named.values() for name in listed)
        known[label] = tuple(name for name in names if not no_class(name))
    return known


def _all_tags(
    opened: Mapping[str, Dataset], columns: HfColumns, rules: TagRules, known: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Tags | None]], Tags]:
    """Return the tags of all rows by split, None without labels, and the columns that are classes."""
    labels = columns.labels or ()
    if not labels:
        return {split: [None] * len(table) for split, table in opened.items()}, ()
    flags: Tags = ()
    cells = {
        label: [cell for table in opened.values() for cell in table.select_columns([label])[:][label]]
        for label in labels
    }
    named: list[list[Tags]] = []
    for label in known:
        kinds = (_inner(table.features[label]) for table in opened.values() for _ in range(len(table)))
        named.append(list(map(class_label_tags, kinds, cells.pop(label))))
    if cells:
        others, flags = columns_tags(cells, rules)
        named.append(others)
    tags = named[0] if len(named) == 1 else [united(said) for said in zip(*named, strict=True)]
    *tags, flags = settled([*tags, flags], rules, [name for names in known.values() for name in names])
    rest = iter(tags)
    return {split: list(islice(rest, len(table))) for split, table in opened.items()}, flags


def _names(
    path: Path,
    tags: Mapping[str, Sequence[Tags | None]],
    columns: HfColumns,
    known: Mapping[str, Sequence[str]],
    flags: Tags,
) -> tuple[str, ...]:
    """Return the names of class labels or columns if all labels are such, else those that occur."""
    if not columns.labels:
        raise DataError(f"{path} has masks but no labels: give the class names with --classes FILE")
    if all(label in known for label in columns.labels):
        return tuple(dict.fromkeys(name for names in known.values() for name in names))
    return class_names_of(chain(*tags.values()), str(path), flags)
