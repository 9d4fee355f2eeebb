"""A folder per class: each picture's tag is the name of the folder that it lies in.

    root/cat/1.jpg                      split by --val-share
    root/train/cat/1.jpg  root/val/cat/2.jpg      split by folders

Folders below a class folder belong to the class. The mask of `cat/1.jpg` is `cat/1.png` in the mask
folder, where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError
from cosa_dist.data.source_classes import TagIndex, class_names_of, plain
from cosa_dist.data.source_record import (
    Entry,
    File,
    Rejection,
    SourceRecord,
    Tell,
    id_of,
    unsafe_id,
    unsafe_name,
    untold,
)
from cosa_dist.data.source_split import TRAIN, VAL, seeded_validation, split_name

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def folder_source(
    root: Path,
    *,
    masks: Path | None = None,
    classes: tuple[str, ...] | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    tell: Tell = untold,
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a folder per class; return the data set and its entries by split.

    Args:
        root: the folder of class folders, or of `train`, `val`, `test` that hold class folders.
        masks: a folder with the same inner paths, ending in `.png`; pictures without a file there
            have no mask.
        classes: class names in id order; None takes the folders' names, sorted.
        val_share: share of each class that is for validation, if there is no `train` folder.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: no such folder, no class folder, or a mask folder without any mask of these pictures.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    by_split = _split_folders(root)
    if by_split is None:
        names = list(_pictures(root, ""))
        chosen = _validation(names, val_share, seed)
        by_split = {TRAIN: [name for name in names if name not in chosen], VAL: sorted(chosen)}
    by_split = {split: names for split, names in by_split.items() if names}
    depth = 1 if (root / TRAIN).is_dir() else 0
    found = {plain(_class_of(name, depth)) for names in by_split.values() for name in names}
    if not found:
        raise DataError(
            f"no pictures in folders below {root}; the layout is CLASS/PICTURE.jpg or train/CLASS/PICTURE.jpg"
        )
    info = DatasetInfo(root.resolve().name, classes or class_names_of([sorted(found)], str(root)))
    index = TagIndex(info.class_names)
    entries = {
        split: [_entry(root, name, _class_of(name, depth), depth, masks, index) for name in names]
        for split, names in by_split.items()
    }
    refuse_without_masks(masks, entries)
    return info, entries


def optional_mask(masks: Path | None, name: str) -> File | None:
    """Return the mask of the picture `name`: the same path ending in `.png`, None if it is not there."""
    if masks is None:
        return None
    file = File(masks, f"{name.rsplit('.', 1)[0]}.png")
    return file if file.exists() else None


def refuse_without_masks(masks: Path | None, entries: dict[str, list[Entry]]) -> None:
    """Raise `DataError` if a mask folder was named and no picture has a mask in it."""
    records = [entry for listed in entries.values() for entry in listed if isinstance(entry, SourceRecord)]
    if masks is None or not records or any(record.mask for record in records):
        return
    picture = records[0].image
    name = picture.name if isinstance(picture, File) else records[0].id
    raise DataError(
        f"no mask of these pictures in {masks}; that of {name} would be {name.rsplit('.', 1)[0]}.png"
    )


def _split_folders(root: Path) -> dict[str, list[str]] | None:
    """Return the pictures by split if `root` has a folder `train`, otherwise None."""
    if not (root / TRAIN).is_dir():
        return None
    splits: dict[str, list[str]] = {}
    for folder in sorted(path.name for path in root.iterdir() if path.is_dir()):
        if split_name(folder) in (TRAIN, VAL, "test"):
            splits.setdefault(split_name(folder), []).extend(_pictures(root, f"{folder}/"))
    return splits


def _pictures(root: Path, below: str) -> Iterator[str]:
    """Yield the paths, relative to `root`, of all pictures in folders below `root/below`, in order."""
    start = root / below
    for folder, folders, files in os.walk(start):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if linked := [name for name in folders if os.path.islink(f"{folder}/{name}")]:
            raise DataError(f"{folder}/{linked[0]} is a link to a folder; put the folder itself in its place")
        if folder == str(start):
            continue
        inner = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield f"{inner}/{name}"


def _validation(names: list[str], val_share: float, seed: int) -> set[str]:
    """Choose the validation pictures of each class."""
    by_class: dict[str, list[str]] = {}
    for name in names:
        by_class.setdefault(_class_of(name, 0), []).append(name)
    chosen = (seeded_validation(listed, val_share, seed) for listed in by_class.values())
    return set[str]().union(*chosen)


def _class_of(name: str, depth: int) -> str:
    """Return the class folder in a picture's path."""
    return name.split("/")[depth]


def _entry(root: Path, name: str, class_name: str, depth: int, masks: Path | None, index: TagIndex) -> Entry:
    """Return the record of one picture; its id is its path without the split's folder."""
    record_id = id_of(name.split("/", depth)[-1])
    reason = unsafe_name(name) or unsafe_id(record_id)
    if reason is None and class_name not in index:
        reason = f"folder '{class_name}' is no class of the list; rename it, or add the class"
    if reason is not None:
        return Rejection(record_id, reason, f"{root.name}/{name}")
    return SourceRecord(record_id, File(root, name), optional_mask(masks, name), index([class_name]))
