"""Class names from a file or from the data, and tags as names turned into indices."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from cosa_dist.data.errors import DataError, RecordError, nearest_name


def plain(name: str) -> str:
    """Return a name without outer spaces and with accents in one spelling (NFC), for comparison."""
    return unicodedata.normalize("NFC", name.strip())


def is_background(name: str) -> bool:
    """Whether a name means background, id 0 of masks: `background` in any case, also `_background_`."""
    return plain(name).strip("_ ").casefold() == "background"


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a text file, one a line, in the order of their ids 1..C.

    A first line `background` is passed over, since background is always id 0.

    Raises:
        DataError: the file is absent, not UTF-8, empty, or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"no file of class names {path}; it holds one name a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    names = [name for line in lines if (name := plain(line))]
    if names and names[0].lower() == "background":
        names = names[1:]
    if not names:
        raise DataError(f"{path} names no class; it holds one name a line")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} names the class '{min(twice)}' twice")
    return tuple(names)


def class_names_of(tags: Iterable[Iterable[str]], where: str) -> tuple[str, ...]:
    """Return all names that occur, sorted: numbers by their value, before words.

    Raises:
        DataError: there is none.
    """
    names = {name for record in tags for name in record}
    if not names:
        raise DataError(f"no tag in {where}; name the column that holds them")
    return tuple(
        sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    )


class TagIndex:
    """Turns tags into sorted 0-based indices of class names."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._index = {plain(name): number for number, name in enumerate(class_names)}
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return plain(name) in self._index

    def __call__(self, tags: Iterable[str]) -> tuple[int, ...]:
        """Return the indices; raises `RecordError` for a tag that is no class."""
        found = set()
        for tag in tags:
            if plain(tag) not in self._index:
                near = nearest_name(plain(tag), self._index)
                raise RecordError(
                    f"tag '{tag}' is no class of this data set{near}; mend it, or add the class"
                )
            found.add(self._index[plain(tag)])
        indices = tuple(sorted(found))
        # The same few combinations come again and again: one object for each saves memory.
        return self._known.setdefault(indices, indices)
