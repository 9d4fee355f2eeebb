"""Sources of records: what lies in a folder or comes out of a generator, before anything is checked.

A source is an iterable of `SourceRecord` (where a picture, its mask and its tags are) and
`Rejection` (an entry that cannot even be named safely). Ids come from list files, which are input
like any other: they must be plain file names, and what they name must lie inside the data set's
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.synthetic import SYNTHETIC_CLASSES, generate_split

MAX_ID_LENGTH = 200

# Lists of some repositories give paths instead of ids: "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png".
_LISTED_PATH = re.compile(r"/?JPEGImages/([^/\\]+)\.jpg")

_COCO_FOLDERS = {"train": "train2014", "val": "val2014"}


@dataclass(frozen=True)
class SourceRecord:
    """One picture as the source has it.

    `mask` None means that there is none; `tags` are 0-based foreground indices, None takes them
    from the mask; `context` is only there for generated pictures.
    """

    id: str
    image: Path | bytes
    mask: Path | bytes | None = None
    tags: tuple[int, ...] | None = None
    context: bytes | None = None


@dataclass(frozen=True)
class Rejection:
    """An entry that is left out, and why."""

    id: str
    reason: str


Entry = SourceRecord | Rejection
"""What a source yields."""


def parse_id_list(text: str) -> list[str]:
    """Return the entries of a list file: the first word of each line that is not empty.

    A first word of the form `/JPEGImages/ID.jpg` is read as `ID`.
    """
    words = [line.split()[0] for line in text.removeprefix("\ufeff").splitlines() if line.split()]
    return [match[1] if (match := _LISTED_PATH.fullmatch(word)) else word for word in words]


def unsafe_id(record_id: str) -> str | None:
    """Return why an id must not be used as a file name, or None if it may."""
    if not record_id or len(record_id) > MAX_ID_LENGTH:
        return f"id is empty or longer than {MAX_ID_LENGTH} characters"
    if "/" in record_id or "\\" in record_id or record_id in {".", ".."}:
        return "id leaves its folder; ids are plain file names without the ending"
    if not record_id.isprintable():
        return "id holds characters that cannot be printed"
    return None


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
        raise DataError(f"id list {path} is not UTF-8 text") from error
    if not entries:
        raise DataError(f"id list {path} names no record")
    return entries


def _folder(path: Path, what: str) -> Path:
    """Return `path` if it is a folder; raises `DataError` that says what was looked for."""
    if not path.is_dir():
        raise DataError(f"no folder {path} ({what})")
    return path


def _listed_records(entries: list[str], images: Path, masks: Path | None) -> Iterator[Entry]:
    """Yield the record of each entry; entries that are unsafe or link out of the folder are rejected."""
    for entry in entries:
        reason = unsafe_id(entry)
        image = images / f"{entry}.jpg"
        mask = masks / f"{entry}.png" if masks else None
        if reason is None and not all(
            path.resolve().is_relative_to(path.parent.resolve()) for path in (image, mask) if path
        ):
            reason = "file is a link that leaves its folder"
        if reason is None:
            yield SourceRecord(entry, image, mask)
        else:
            yield Rejection(entry, reason)


def voc_records(root: Path, split: str) -> Iterator[Entry]:
    """Open a split of a VOC devkit and return its records.

    Args:
        root: the folder with `JPEGImages`, or one above it (`VOC2012`, `VOCdevkit/VOC2012`).
        split: name of a list in `ImageSets/Segmentation`. `train_aug` takes `SegmentationClassAug`
            (and its list may be called `trainaug`), `test` has no masks, all others take
            `SegmentationClass` where it exists and `SegmentationClassAug` otherwise.

    Raises:
        DataError: the folder or the list is not there.
    """
    homes = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    home = next((folder for folder in homes if (folder / "JPEGImages").is_dir()), None)
    if home is None:
        raise DataError(f"no VOC devkit in {root}: it or its VOC2012 folder must hold JPEGImages")
    lists = _folder(home / "ImageSets" / "Segmentation", "id lists")
    name = "trainaug" if split == "train_aug" and (lists / "trainaug.txt").exists() else split
    masks: Path | None = None
    if split != "test":
        plain, augmented = home / "SegmentationClass", home / "SegmentationClassAug"
        takes_augmented = split == "train_aug" or not plain.is_dir()
        masks = _folder(augmented if takes_augmented else plain, "masks")
    return _listed_records(read_id_list(lists / f"{name}.txt"), home / "JPEGImages", masks)


def coco_records(root: Path, split: str) -> Iterator[Entry]:
    """Open a split of COCO in the folder layout of WSSS repositories and return its records.

    `root` holds `train.txt`, `val.txt`, `train2014`, `val2014` and `SegmentationClass` with the
    masks in `train2014` and `val2014`.

    Raises:
        DataError: unknown split, or a folder or list is not there.
    """
    if split not in _COCO_FOLDERS:
        raise DataError(f"COCO has no split '{split}'{nearest_name(split, _COCO_FOLDERS)}; known: train, val")
    folder = _COCO_FOLDERS[split]
    images = _folder(root / folder, "images")
    masks = _folder(root / "SegmentationClass" / folder, "masks")
    return _listed_records(read_id_list(root / f"{split}.txt"), images, masks)


def synthetic_info() -> DatasetInfo:
    """Return the entry of the generated data set."""
    return DatasetInfo("synthetic", SYNTHETIC_CLASSES)


def synthetic_records(split: str, count: int, *, seed: int, image_size: int) -> Iterator[SourceRecord]:
    """Yield `count` generated pictures as records: JPEG pictures, exact masks and context masks.

    Raises:
        DataError: the generator refuses the count, the seed or the size.
    """
    try:
        for picture in generate_split(split, count, seed, image_size):
            yield SourceRecord(
                picture.id,
                encode_jpeg(picture.image),
                encode_mask(picture.mask),
                context=encode_mask(picture.context_mask),
            )
    except ValueError as error:
        raise DataError(f"generated split '{split}': {error}") from error


def duplicates_rejected(entries: Iterable[Entry]) -> list[Entry]:
    """Return all entries, each id that came before replaced by a rejection."""
    seen: set[str] = set()
    kept: list[Entry] = []
    for entry in entries:
        if entry.id in seen:
            kept.append(Rejection(entry.id, "id occurs twice in the list; the first one is kept"))
        else:
            kept.append(entry)
        seen.add(entry.id)
    return kept
