"""What the folders of a tree of pictures mean: which are classes, which are splits, which only wrap others.

    cat/1.jpg    train/cat/1.jpg    cat/train/1.jpg    leaves/train/images/cat/1.jpg

A layout is taken where no other is likely; where two are possible, the user has to say which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from cosa_dist.data.catalog import is_background
from cosa_dist.data.errors import DataError, quoted
from cosa_dist.data.sources.classes import plain
from cosa_dist.data.sources.record import Tell, untold
from cosa_dist.data.sources.split import TRAIN, split_in_file_name, usual_split

CLASS, SPLIT_CLASS, CLASS_SPLIT = "class", "split/class", "class/split"
LAYOUTS = (CLASS, SPLIT_CLASS, CLASS_SPLIT)

_PICTURES = re.compile(r"images?|imgs?|pictures?|photos?|jpegimages|data|datasets?|inputs?|leftimg8bit")
_MASKS = re.compile(r"masks?|labels?|annotations?|groundtruths?|gts?|gtfine|targets?|segmentationclass(aug)?")
_SAY = "say with --layout which is meant: " + ", ".join(LAYOUTS)


class Place(NamedTuple):
    """What a picture's path says: its split (None where there are none), its class, its id as a path."""

    split: str | None
    class_name: str
    id_name: str


@dataclass(frozen=True)
class Layout:
    """Meaning of the folders in a picture's path.

    Attributes:
        kind: one of `LAYOUTS`.
        base: path of the folder that holds classes or splits, with a final slash, or empty.
        inner: number of folders between split and class.
    """

    kind: str
    base: str = ""
    inner: int = 0

    @property
    def split_at(self) -> int:
        """Which part of a path, from 0, is the split's folder, if the layout has one."""
        return self.base.count("/") + (self.kind == CLASS_SPLIT)

    def place(self, name: str) -> Place | None:
        """Return what the path `name` says; None for a picture that lies in no split or no class."""
        parts = name.removeprefix(self.base).split("/")
        if len(parts) < (2 if self.kind == CLASS else 3):
            return None
        if self.kind == CLASS:
            return Place(None, parts[0], "/".join(parts))
        split = usual_split(parts[self.kind == CLASS_SPLIT])
        if self.kind == CLASS_SPLIT:
            del parts[1]
        else:
            del parts[: 1 + self.inner]
        return Place(split, parts[0], "/".join(parts)) if split and len(parts) > 1 else None


@dataclass
class _Folder:
    """A folder that holds pictures somewhere: how many directly, and its folders of that kind."""

    pictures: int = 0
    folders: dict[str, _Folder] = field(default_factory=dict)


def find_layout(
    root: Path, names: Iterable[str], classes: Collection[str] = (), tell: Tell = untold
) -> Layout:
    """Return the layout of the pictures `names`, paths relative to `root`.

    Args:
        root: for messages.
        names: paths with forward slashes.
        classes: class names that the user gave; a folder of such a name is a class.
        tell: takes a line where a folder could be taken for a split.

    Raises:
        DataError: two layouts are possible, or the folders are splits without classes.
    """
    node, base, known = _tree(names), "", {plain(name) for name in classes}
    while (inner := _wrapper(node, known)) is not None:
        base, node = f"{base}{inner}/", node.folders[inner]
    where = f"{root}/{base}".rstrip("/")
    kind = _kind(node, where, known, tell)
    return Layout(kind, base, _depth_below_splits(node) if kind == SPLIT_CLASS else 0)


def refuse_no_classes(root: Path, found: Iterable[str]) -> None:
    """Raise `DataError` if the names of all class folders say that they are none."""
    names = sorted(found)
    shown = quoted(names)
    splits = [split_in_file_name(re.sub(r"\d+", "", name)) for name in names]
    if all(map(usual_split, names)) or (all(splits) and len(set(splits)) > 1):
        raise DataError(
            f"the folders {shown} of {root} are splits and hold no class folders; the layout is "
            f"train/CLASS/PICTURE.jpg (if they are classes: --layout {CLASS})"
        )
    if any(_PICTURES.fullmatch(_word(name)) for name in names) and all(map(_holds_all_classes, names)):
        raise DataError(
            f"the folders {shown} of {root} are no classes; put the pictures of each class into a folder "
            f"CLASS, or give their tags in a table (ingest.py table); if they are classes: --layout {CLASS}"
        )


def no_class_folder(name: str) -> bool:
    """Whether a folder's name is one of splits, or of pictures or masks of whatever class."""
    return usual_split(name) is not None or _holds_all_classes(name)


def _holds_all_classes(name: str) -> bool:
    """Whether a folder's name says that it holds pictures or masks of whatever class."""
    return bool(_PICTURES.fullmatch(_word(name)) or _MASKS.fullmatch(_word(name)))


def _word(name: str) -> str:
    """Return a folder's name in lower case and without separators."""
    return re.sub(r"[ _.-]", "", name.casefold())


def _tree(names: Iterable[str]) -> _Folder:
    """Return the folders of all paths."""
    top = _Folder()
    for name in names:
        node = top
        for part in name.split("/")[:-1]:
            node = node.folders.setdefault(part, _Folder())
        node.pictures += 1
    return top


def _wrapper(node: _Folder, known: Collection[str]) -> str | None:
    """Return the name of the only folder if it wraps folders of classes or splits."""
    if len(node.folders) != 1:
        return None
    ((name, inside),) = node.folders.items()
    if inside.pictures or not inside.folders or usual_split(name) or plain(name) in known:
        return None
    if _holds_only_splits(inside):
        return None  # CLASS/SPLIT of a single class
    several = (
        len(inside.folders) > 1
        or any(map(usual_split, inside.folders))
        or _wrapper(inside, known) is not None
    )
    return name if several or _holds_all_classes(name) else None


def _kind(node: _Folder, where: str, known: Collection[str], tell: Tell) -> str:
    """Return which layout the folders in `node` have."""
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
        refuse_no_classes(Path(where), node.folders)
    if not nested and all(name.casefold() == TRAIN for name in splits):
        tell(f"folder '{next(iter(splits))}' is taken for a class: pictures lie in it, beside other classes")
        return CLASS
    raise DataError(
        f"'{next(iter(splits))}' in {where} may be a split or a class beside '{others[0]}'; {_SAY}"
    )


def _kind_of_classes(node: _Folder, where: str, known: Collection[str]) -> str:
    """Return the layout of folders that are no splits: classes, with or without splits in them."""
    if node.folders and all(map(_holds_only_splits, node.folders.values())):
        return CLASS_SPLIT
    below = {name: _unwrapped(name, folder) for name, folder in node.folders.items()}
    for path, folder in below.values():
        if len(set(map(usual_split, folder.folders)) - {None}) > 1:
            raise DataError(
                f"folder '{path}' of {where} holds splits and may be a class, or hold all classes; give "
                f"{where}/{path} itself, or {_SAY}"
            )
    for name, folder in node.folders.items():
        if folder.folders and not folder.pictures and folder.folders.keys() <= node.folders.keys() - {name}:
            raise DataError(
                f"folder '{name}' of {where} holds folders of the classes' names; if these are masks, give "
                "it with --masks, otherwise move it away"
            )
    if not all(name in known for name in node.folders):
        _refuse_same_inside(list(below.values()), where)
    return CLASS


def _refuse_same_inside(inside: Iterable[tuple[str, _Folder]], where: str) -> None:
    """Raise `DataError` if two folders, given with their paths, hold nothing but folders, two of one name."""
    sorts = [(path, folder.folders) for path, folder in inside if not folder.pictures and folder.folders]
    for (path, one), (other_path, other) in combinations(sorts, 2):
        if len(shared := [name for name in one if name in other]) > 1:
            raise DataError(
                f"the folders '{path}' and '{other_path}' of {where} both hold {quoted(shared)}: if these "
                "are the classes, give one such folder, or name them as splits (train, val); if "
                f"'{path.split('/')[0]}' is a class: --layout {CLASS}"
            )


def _unwrapped(path: str, folder: _Folder) -> tuple[str, _Folder]:
    """Return the first folder from `folder` inwards that holds more than one folder, and its path."""
    while len(folder.folders) == 1 and not folder.pictures:
        ((inner, folder),) = folder.folders.items()
        path = f"{path}/{inner}"
    return path, folder


def _holds_only_splits(folder: _Folder) -> bool:
    """Whether a folder holds nothing but splits, and these only pictures."""
    below = folder.folders
    return (
        bool(below)
        and not folder.pictures
        and all(map(usual_split, below))
        and not any(split.folders for split in below.values())
    )


def _depth_below_splits(node: _Folder) -> int:
    """Return how many folders lie between the splits and their classes, as in `train/images/cat`."""
    level = [inside for name, inside in node.folders.items() if usual_split(name) and inside.folders]
    depth = 0
    while all(len(inside.folders) == 1 for inside in level):
        below = [next(iter(inside.folders.items())) for inside in level]
        wraps = all(_holds_all_classes(name) or usual_split(name) for name, _ in below)
        alike = len({name for name, _ in below}) == 1 and any(len(inner.folders) > 1 for _, inner in below)
        if any(inner.pictures for _, inner in below) or not (wraps or alike):
            break
        level, depth = [inner for _, inner in below], depth + 1
    return depth
