"""A folder per class: each picture's tag is the name of the folder that it lies in.

    root/cat/1.jpg                      split by --val-share
    root/train/cat/1.jpg  root/val/cat/2.jpg      split by folders

Folders below a class folder belong to the class; pictures in a folder `background` have no tag. The mask of
`cat/1.jpg` is `cat/1.png` in the mask folder, where there is one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.classes import TagIndex, class_names_of, is_background, plain, tell_of_none
from cosa_dist.data.sources.layout import (
    CLASS_SPLIT,
    Layout,
    Place,
    find_layout,
    no_class_folder,
    refuse_no_classes,
)
from cosa_dist.data.sources.record import (
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
from cosa_dist.data.sources.split import TEST, TRAIN, VAL, seeded_validation

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def folder_source(
    root: Path,
    *,
    masks: Path | None = None,
    classes: tuple[str, ...] | None = None,
    layout: str | None = None,
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
        layout: one of `source_layout.LAYOUTS`; None finds it.
        val_share: share of each class that is for validation, if no folder is a split.
        seed: which ones.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: no such folder, no class folder, folders that may be read in two ways, or a mask
            folder without any mask of these pictures.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    names = list(_pictures(root, masks))
    read = Layout(layout) if layout else find_layout(root, names, classes or (), tell)
    places = {name: place for name in names if (place := read.place(name)) is not None}
    if layout is None and classes is None:
        places = _in_classes(places)
    _refuse_two_of_a_split(root, read, places)
    found = _class_names(root, places, checked=layout is None and classes is None)
    info = DatasetInfo(root.resolve().name, classes or found)
    index = TagIndex(info.class_names)
    if masks is not None and (masks / read.base).is_dir():
        masks = masks / read.base
    by_split = _by_split(places, val_share, seed)
    entries = {
        split: [_entry(root, name, places[name], masks, read.base, index) for name in listed]
        for split, listed in by_split.items()
    }
    refuse_without_masks(masks, entries)
    for line in _lines(read, names, places):
        tell(line)
    if classes is None:
        tell_of_none(found, tell)
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


def _pictures(root: Path, masks: Path | None) -> Iterator[str]:
    """Yield the paths, relative to `root`, of all pictures in it and its folders but the mask folder."""
    left_out = os.path.realpath(masks) if masks is not None else None
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _OF_SYSTEMS)
        if linked := [name for name in folders if os.path.islink(f"{folder}/{name}")]:
            raise DataError(f"{folder}/{linked[0]} is a link to a folder; put the folder itself in its place")
        if left_out:
            folders[:] = [name for name in folders if os.path.realpath(f"{folder}/{name}") != left_out]
        inner = Path(folder).relative_to(root)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield (inner / name).as_posix()


def _class_names(root: Path, places: Mapping[str, Place], checked: bool) -> tuple[str, ...]:
    """Return the names of the class folders, sorted.

    Raises:
        DataError: there are none or, where `checked`, their names say that they are none.
    """
    found = {name for place in places.values() if not is_background(name := plain(place.class_name))}
    if not found:
        raise DataError(
            f"no pictures in folders below {root}; the layout is CLASS/PICTURE.jpg or train/CLASS/PICTURE.jpg"
        )
    if checked:
        refuse_no_classes(root, found)
    return class_names_of([found], str(root))


def _in_classes(places: Mapping[str, Place]) -> dict[str, Place]:
    """Return the pictures without those of `test/images` and the like, where `train` holds class folders."""
    trained = {place.class_name for place in places.values() if place.split == TRAIN}
    return {
        name: place
        for name, place in places.items()
        if not trained or place.class_name in trained or not no_class_folder(place.class_name)
    }


def _refuse_two_of_a_split(root: Path, read: Layout, places: Mapping[str, Place]) -> None:
    """Raise `DataError` if two folders, of one class where splits lie in classes, are the same split."""
    known: dict[str, str] = {}
    for name, place in places.items():
        if place.split is None:
            continue
        parts = name.split("/")
        above, folder = "/".join([str(root), *parts[: read.split_at]]), parts[read.split_at]
        if (other := known.setdefault(f"{above}/{place.split}", folder)) != folder:
            raise DataError(
                f"the folders '{other}' and '{folder}' in {above} are both the "
                f"split '{place.split}'; put their pictures into one, or move one away"
            )


def _by_split(places: Mapping[str, Place], val_share: float, seed: int) -> dict[str, list[str]]:
    """Return the pictures by split: that of their folders, or a share of each class for validation."""
    if any(place.split for place in places.values()):
        listed = {
            split: [name for name, place in places.items() if place.split == split]
            for split in (TRAIN, VAL, TEST)
        }
    else:
        by_class: dict[str, list[str]] = {}
        for name, place in places.items():
            by_class.setdefault(place.class_name, []).append(name)
        shares = (seeded_validation(names, val_share, seed) for names in by_class.values())
        chosen = set[str]().union(*shares)
        listed = {TRAIN: [name for name in places if name not in chosen], VAL: sorted(chosen)}
    return {split: names for split, names in listed.items() if names}


def _lines(read: Layout, names: list[str], places: Mapping[str, Place]) -> Iterator[str]:
    """Yield what the user should know of how the folders were read."""
    first, place = next(iter(places.items()))
    splits = {name.split("/")[read.split_at]: found.split for name, found in places.items() if found.split}
    if read.base or read.inner or read.kind == CLASS_SPLIT:
        of_split = f" in split '{place.split}'" if place.split else ""
        yield f"folders: {first} is of class '{place.class_name}'{of_split}"
    if any(name != split for name, split in splits.items()):
        yield "splits: " + ", ".join(f"folder '{name}' is {split}" for name, split in splits.items())
    lost = Counter(name.rpartition("/")[0] or "the folder itself" for name in names if name not in places)
    for folder, count in lost.most_common(5):
        yield f"left out: {count} pictures in {folder}, which belong to no class folder"
    background = Counter(p.class_name for p in places.values() if is_background(p.class_name))
    for folder, count in background.items():
        yield f"folder '{folder}': {count} pictures without a tag"
    below = sorted({p.id_name.rsplit("/", 1)[0] for p in places.values() if p.id_name.count("/") > 1})
    if below:
        yield f"folders below class folders belong to the class, such as {below[0]}"


def _entry(root: Path, name: str, place: Place, masks: Path | None, base: str, index: TagIndex) -> Entry:
    """Return the record of one picture."""
    record_id = id_of(place.id_name)
    reason = unsafe_name(name) or unsafe_id(record_id)
    tags = [] if is_background(place.class_name) else [place.class_name]
    if reason is None and not all(tag in index for tag in tags):
        reason = f"folder '{place.class_name}' is no class of the list; rename it, or add the class"
    if reason is not None:
        return Rejection(record_id, reason, f"{root.name}/{name}")
    return SourceRecord(
        record_id, File(root, name), optional_mask(masks, name.removeprefix(base)), index(tags)
    )
