"""Id lists, and the records they name: pictures in one folder, masks of the same name in another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.source_record import Entry, File, Rejection, SourceRecord, unsafe_id

# Lists of some repositories give paths instead of ids: "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png".
_LISTED_PATH = re.compile(r"/?JPEGImages/([^/\\]+)\.jpg")


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
