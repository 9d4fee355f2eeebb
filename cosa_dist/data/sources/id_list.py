"""Id lists, and the records they name: pictures in one folder, masks of the same name in another.

Own data come in the layouts of VOC and COCO as well. Their classes are those of the data set that the
layout is named after only if the ids are that data set's; otherwise a list of classes is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.sources.classes import read_class_names
from cosa_dist.data.sources.record import Entry, File, Rejection, SourceRecord, Tell, unsafe_id

# Lists of some repositories give paths instead of ids: "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png".
_LISTED_PATH = re.compile(r"/?JPEGImages/([^/\\]+)\.jpg")

CLASS_LISTS = ("labelmap.txt", "class_names.txt", "labels.txt", "classes.txt")
"""Files of class names that tools write beside their masks (CVAT, labelme, ...)."""


def listed_data_set(
    known: DatasetInfo,
    ids: re.Pattern[str],
    homes: Sequence[Path],
    entries: Mapping[str, Sequence[Entry]],
    classes: tuple[str, ...] | None,
    tell: Tell,
) -> DatasetInfo:
    """Return the data set in a known layout: `known` itself, or one of its own under the folder's name.

    Args:
        known: the data set that the layout is named after.
        ids: what its ids look like.
        homes: folders in which a list of classes may lie; the first gives own data their name.
        entries: the records by split.
        classes: class names in id order, if they were given.
        tell: takes a line on where the classes are from.

    Raises:
        DataError: the ids are not those of `known`, and no classes are given or listed.
    """
    if classes is None:
        found = next(
            (path for home in homes for name in CLASS_LISTS if (path := home / name).is_file()), None
        )
        if found is not None:
            classes = read_class_names(found, tell)
            tell(f"the masks' {len(classes)} classes are those of {found}")
    records = (entry for listed in entries.values() for entry in listed if isinstance(entry, SourceRecord))
    foreign = next((record.id for record in records if not ids.fullmatch(record.id)), None)
    if foreign is None and classes in (None, known.class_names):
        return known
    if classes is None:
        raise DataError(
            f"'{foreign}' is no image id of {known.name.upper()}, so the masks may hold other classes; "
            f"give the class names in id order with --classes FILE, or in {homes[0] / 'labels.txt'}"
        )
    name = homes[0].resolve().name
    return DatasetInfo(f"own_{name}" if name.casefold() == known.name else name, classes)


def parse_id_list(text: str) -> list[str]:
    """Return the entries of a list file: the first word of each line that is not empty.

    A first word of the form `/JPEGImages/ID.jpg` is read as `ID`.
    """
    words = [line.split()[0] for line in text.removeprefix("\ufeff").splitlines() if line.split()]
    return [match[1] if (match := _LISTED_PATH.fullmatch(word)) else word for word in words]


def read_id_list(path: Path) -> list[str]:
    """Read a list file; raises `DataError` if it is absent, not text, or empty."""
    try:
        entries = parse_id_list(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = sorted(entry.stem for entry in path.parent.glob("*.txt"))
        raise DataError(
            f"no id list {path}{nearest_name(path.stem, there)}; lists there: {', '.join(there) or 'none'}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"id list {path} is not UTF-8 text; save it as UTF-8") from error
    if not entries:
        raise DataError(f"id list {path} names no record; fill it or take the split out of --splits")
    return entries


def existing_folder(path: Path, what: str) -> Path:
    """Return `path` if it is a folder; raises `DataError` that says what was looked for."""
    if not path.is_dir():
        raise DataError(f"no folder {path} ({what})")
    return path


def listed_records(ids: Iterable[str], images: Path, masks: Path | None) -> Iterator[Entry]:
    """Yield the record of each id: `images/ID.jpg` and, where `masks` is given, `masks/ID.png`."""
    for record_id in ids:
        if reason := unsafe_id(record_id):
            yield Rejection(record_id, reason)
        else:
            mask = File(masks, f"{record_id}.png") if masks else None
            yield SourceRecord(record_id, File(images, f"{record_id}.jpg"), mask)
