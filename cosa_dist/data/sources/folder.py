"""A folder per class: each picture's tag is the name of the folder that it lies in.

    cat/1.jpg    train/cat/1.jpg    cat/train/1.jpg    leaves/train/images/cat/1.jpg

Folders below a class folder belong to the class, folders that only wrap others are passed over; pictures in a
folder `background` have no tag. A layout is taken where no other is likely; where two are possible, the user
has to say which. The mask of `cat/1.jpg` is `cat/1.png` in the mask folder, where there is one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from cosa_dist.data.catalog import DatasetInfo, is_background
from cosa_dist.data.errors import DataError, Rejection, quoted
from cosa_dist.data.sources.classes import Indices, class_names_of, note_none_classes, tag_indices
from cosa_dist.data.sources.record import (
    TEST,
    TRAIN,
    VAL,
    Entry,
    File,
    SourceOptions,
    SourceRecord,
    id_of,
    letters,
    plain,
    seeded_validation,
    split_in_file_name,
    unsafe_id,
    unsafe_name,
    usual_split,
)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CLASS, SPLIT_CLASS, CLASS_SPLIT = "class", "split/class", "class/split"
LAYOUTS = (CLASS, SPLIT_CLASS, CLASS_SPLIT)

_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
_PICTURES = re.compile(r"images?|imgs?|pictures?|photos?|jpegimages|data|datasets?|inputs?|leftimg8bit")
_MASKS = re.compile(r"masks?|labels?|annotations?|groundtruths?|gts?|gtfine|targets?|segmentationclass(aug)?")
_SAY = "say with --layout which is meant: " + ", ".join(LAYOUTS)


class _Place(NamedTuple):
    """What a picture's path says: its split with that folder's path, if any, its class, its id as a path."""

    split: str | None
    split_folder: str
    class_name: str
    id_name: str


@dataclass(frozen=True)
class _Layout:
    """Meaning of the folders in a path: the kind below `base`, and how many lie between split and class."""

    kind: str
    base: str = ""
    inner: int = 0

    def place(self, name: str) -> _Place | None:
        """Return what the path `name` says; None for a picture that lies in no split or no class."""
        parts = name.removeprefix(self.base).split("/")
        if self.kind == CLASS:
            return _Place(None, "", parts[0], "/".join(parts)) if len(parts) > 1 else None
        if len(parts) < 3:
            return None
        above = f"{parts[0]}/" if self.kind == CLASS_SPLIT else ""
        folder = parts.pop(1 if above else 0)
        split, parts = usual_split(folder), parts[self.inner :]
        found = split and len(parts) > 1
        return _Place(split, f"{self.base}{above}{folder}", parts[0], "/".join(parts)) if found else None


@dataclass
class _Folder:
    """A folder that holds pictures somewhere: how many directly, and its folders of that kind."""

    pictures: int = 0
    folders: dict[str, _Folder] = field(default_factory=dict)

    def holds_only_splits(self) -> bool:
        """Whether there are nothing but splits in it, and in these only pictures."""
        splits = all(usual_split(name) and not inside.folders for name, inside in self.folders.items())
        return bool(self.folders) and not self.pictures and splits

    def unwrapped(self, path: str) -> tuple[str, _Folder]:
        """Return the first folder from this one inwards that holds more than one folder, and its path."""
        folder = self
        while len(folder.folders) == 1 and not folder.pictures:
            ((inner, folder),) = folder.folders.items()
            path = f"{path}/{inner}"
        return path, folder


def folder_source(
    root: Path, options: SourceOptions, *, masks: Path | None = None, layout: str | None = None
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open a folder of class folders, or of splits that hold some; return data set and entries by split.

    `layout` is one of `LAYOUTS`, None finds it; `masks` has the pictures' inner paths, ending in `.png`.
    Raises `DataError` if there is no class folder, folders may be read in two ways, or no picture has a mask
    in `masks`.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    names = list(_pictures(root, masks))
    read = _Layout(layout) if layout else _find_layout(root, names, options)
    places = {name: place for name in names if (place := read.place(name)) is not None}
    trained = {place.class_name for place in places.values() if place.split == TRAIN}
    found_out = layout is None and options.classes is None
    if found_out and trained:  # `test/images` beside class folders in `train` is left out
        places = {
            name: place
            for name, place in places.items()
            if place.class_name in trained or not _is_no_class(place.class_name)
        }
    _refuse_two_of_a_split(root, places)
    found = {name for p in places.values() if not is_background(name := plain(p.class_name))}
    if not found:
        said = f"no pictures in folders below {root}"
        raise DataError(f"{said}; the layout is CLASS/PICTURE.jpg or train/CLASS/PICTURE.jpg")
    if found_out:
        _refuse_no_classes(root, found)
    info = DatasetInfo(root.resolve().name, options.classes or class_names_of([found], str(root)))
    indices = tag_indices(info.class_names)
    if masks is not None and (masks / read.base).is_dir():
        masks = masks / read.base
    entries = {
        split: [_entry(root, name, places[name], masks, read.base, indices) for name in listed]
        for split, listed in _by_split(places, options).items()
    }
    refuse_without_masks(masks, entries)
    for line in _notes(read, names, places):
        options.note(line)
    if options.classes is None:
        note_none_classes(info.class_names, options.note)
    return info, entries


def optional_mask(masks: Path | None, name: str) -> File | None:
    """Return the mask of the picture `name`: the same path ending in `.png`, None if it is not there."""
    file = File(masks, f"{name.rsplit('.', 1)[0]}.png") if masks else None
    return file if file and file.exists() else None


def refuse_without_masks(masks: Path | None, entries: Mapping[str, list[Entry]]) -> None:
    """Raise `DataError` if a mask folder was named and no picture has a mask in it."""
    records = [entry for listed in entries.values() for entry in listed if isinstance(entry, SourceRecord)]
    if masks and records and not any(record.mask for record in records):
        picture = records[0].image
        name = picture.name if isinstance(picture, File) else records[0].id
        example = f"that of {name} would be {name.rsplit('.', 1)[0]}.png"
        raise DataError(f"no mask of these pictures in {masks}; {example}")


def _pictures(root: Path, masks: Path | None) -> Iterator[str]:
    left_out = os.path.realpath(masks) if masks is not None else None
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _OF_SYSTEMS)
        if linked := [name for name in folders if os.path.islink(f"{folder}/{name}")]:
            raise DataError(f"{folder}/{linked[0]} is a link to a folder; put the folder itself in its place")
        folders[:] = [name for name in folders if os.path.realpath(f"{folder}/{name}") != left_out]
        inner = Path(folder).relative_to(root)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield (inner / name).as_posix()


def _find_layout(root: Path, names: Iterable[str], options: SourceOptions) -> _Layout:
    node, base = _Folder(), ""
    for name in names:
        inside = node
        for part in name.split("/")[:-1]:
            inside = inside.folders.setdefault(part, _Folder())
        inside.pictures += 1
    while (inner := _wrapper(node, options.explicit)) is not None:
        base, node = f"{base}{inner}/", node.folders[inner]
    kind = _kind(node, f"{root}/{base}".rstrip("/"), options)
    return _Layout(kind, base, _depth_below_splits(node) if kind == SPLIT_CLASS else 0)


def _wrapper(node: _Folder, known: Collection[str]) -> str | None:
    """Return the name of the only folder if it wraps folders of classes or splits."""
    if len(node.folders) != 1:
        return None
    ((name, inside),) = node.folders.items()
    if inside.pictures or not inside.folders or usual_split(name) or plain(name) in known:
        return None
    if inside.holds_only_splits():
        return None  # CLASS/SPLIT of a single class
    several = len(inside.folders) > 1 or any(map(usual_split, inside.folders))
    return name if several or _wrapper(inside, known) is not None or _holds_all_classes(name) else None


def _kind(node: _Folder, where: str, options: SourceOptions) -> str:
    known = options.explicit
    splits = {name: split for name in node.folders if (split := usual_split(name))}
    others = [name for name in node.folders if name not in splits]
    nested = {split for name, split in splits.items() if node.folders[name].folders}
    if not splits or (others and all(plain(name) in known or is_background(name) for name in node.folders)):
        return _kind_of_classes(node, where, known)
    if nested and (not others or (TRAIN in nested and len(set(splits.values())) > 1)):
        if TRAIN in set(splits.values()) - nested:
            raise DataError(f"the pictures of train lie in no class folder in {where}; put them into some")
        return SPLIT_CLASS
    if not others:
        _refuse_no_classes(where, node.folders)
    first = next(iter(splits))
    if not nested and all(name.casefold() == TRAIN for name in splits):
        options.note(f"folder '{first}' is taken for a class: pictures lie in it, beside other classes")
        return CLASS
    raise DataError(f"'{first}' in {where} may be a split or a class beside '{others[0]}'; {_SAY}")


def _kind_of_classes(node: _Folder, where: str, known: Collection[str]) -> str:
    """Return the layout of folders that are no splits: classes, with or without splits in them."""
    if node.folders and all(folder.holds_only_splits() for folder in node.folders.values()):
        return CLASS_SPLIT
    below = [folder.unwrapped(name) for name, folder in node.folders.items()]
    for path, folder in below:
        if len(set(map(usual_split, folder.folders)) - {None}) > 1:
            said = f"folder '{path}' of {where} holds splits and may be a class, or hold all classes"
            raise DataError(f"{said}; give {where}/{path} itself, or {_SAY}")
    for name, folder in node.folders.items():
        if folder.folders and not folder.pictures and folder.folders.keys() <= node.folders.keys() - {name}:
            cure = "if these are masks, give it with --masks, otherwise move it away"
            raise DataError(f"folder '{name}' of {where} holds folders of the classes' names; {cure}")
    unlisted = any(name not in known for name in node.folders)
    inside = [(path, folder.folders) for path, folder in below if not folder.pictures and unlisted]
    for (path, one), (other_path, other) in combinations(inside, 2):
        if len(shared := [name for name in one if name in other]) > 1:
            raise DataError(
                f"the folders '{path}' and '{other_path}' of {where} both hold {quoted(shared)}: if these "
                "are the classes, give one such folder, or name them as splits (train, val); if "
                f"'{path.split('/')[0]}' is a class: --layout {CLASS}"
            )
    return CLASS


def _depth_below_splits(node: _Folder) -> int:
    """Return how many folders lie between the splits and their classes, as in `train/images/cat`."""
    level = [inside for name, inside in node.folders.items() if usual_split(name) and inside.folders]
    depth = 0
    while all(len(inside.folders) == 1 for inside in level):
        names = {name for inside in level for name in inside.folders}
        level = [below for inside in level for below in inside.folders.values()]
        alike = len(names) == 1 and any(len(below.folders) > 1 for below in level)
        if any(below.pictures for below in level) or not (alike or all(map(_is_no_class, names))):
            break
        depth += 1
    return depth


def _refuse_no_classes(root: Path | str, found: Iterable[str]) -> None:
    names = sorted(found)
    splits = [split_in_file_name(re.sub(r"\d+", "", name)) for name in names]
    said, cure = f"the folders {quoted(names)} of {root} are", f"if they are classes: --layout {CLASS}"
    if all(map(usual_split, names)) or (all(splits) and len(set(splits)) > 1):
        layout = "the layout is train/CLASS/PICTURE.jpg"
        raise DataError(f"{said} splits and hold no class folders; {layout} ({cure})")
    if any(_PICTURES.fullmatch(letters(name)) for name in names) and all(map(_holds_all_classes, names)):
        layout = "put the pictures of each class into a folder CLASS, or use `ingest.py table`"
        raise DataError(f"{said} no classes; {layout}; {cure}")


def _is_no_class(name: str) -> bool:
    """Whether a folder's name is one of splits, or of pictures or masks of whatever class."""
    return usual_split(name) is not None or _holds_all_classes(name)


def _holds_all_classes(name: str) -> bool:
    return bool(_PICTURES.fullmatch(letters(name)) or _MASKS.fullmatch(letters(name)))


def _refuse_two_of_a_split(root: Path, places: Mapping[str, _Place]) -> None:
    known: dict[tuple[str, str | None], str] = {}
    for place in places.values():
        above, _, folder = f"{root}/{place.split_folder}".rpartition("/")
        if (other := known.setdefault((above, place.split), folder)) != folder:
            said = f"the folders '{other}' and '{folder}' in {above} are both the split '{place.split}'"
            raise DataError(f"{said}; put their pictures into one, or move one away")


def _by_split(places: Mapping[str, _Place], options: SourceOptions) -> dict[str, list[str]]:
    """Return the pictures by split: that of their folders, or a fraction of each class for validation."""
    groups: dict[str, list[str]] = {}
    for name, place in places.items():
        groups.setdefault(place.split or place.class_name, []).append(name)
    if not any(place.split for place in places.values()):
        chosen = seeded_validation(groups.values(), options)
        groups = {TRAIN: [name for name in places if name not in chosen], VAL: sorted(chosen)}
    return {split: groups[split] for split in (TRAIN, VAL, TEST) if groups.get(split)}


def _notes(read: _Layout, names: list[str], places: Mapping[str, _Place]) -> Iterator[str]:
    first, place = next(iter(places.items()))
    if read.base or read.inner or read.kind == CLASS_SPLIT:
        of_split = f" in split '{place.split}'" if place.split else ""
        yield f"folders: {first} is of class '{place.class_name}'{of_split}"
    splits = {p.split_folder.rpartition("/")[2]: p.split for p in places.values() if p.split}
    if any(name != split for name, split in splits.items()):
        yield "splits: " + ", ".join(f"folder '{name}' is {split}" for name, split in splits.items())
    lost = Counter(name.rpartition("/")[0] or "the folder itself" for name in names if name not in places)
    for folder, count in lost.most_common(5):
        yield f"left out: {count} pictures in {folder}, which belong to no class folder"


def _entry(root: Path, name: str, place: _Place, masks: Path | None, base: str, indices: Indices) -> Entry:
    record_id = id_of(place.id_name)
    reason = unsafe_name(name) or unsafe_id(record_id)
    tags = indices(() if is_background(place.class_name) else (place.class_name,))
    if reason or isinstance(tags, str):
        return Rejection(record_id, reason or str(tags), f"{root.name}/{name}")
    return SourceRecord(record_id, File(root, name), optional_mask(masks, name.removeprefix(base)), tags)
