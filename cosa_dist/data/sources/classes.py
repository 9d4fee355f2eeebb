"""Class names from a file or from the data, and tags as names turned into indices."""

from __future__ import annotations

import ast
import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cosa_dist.data.catalog import UNLABELED, is_background
from cosa_dist.data.errors import DataError, RecordError, nearest_name, quoted
from cosa_dist.data.sources.record import Tell, untold

_Listed = list[tuple[int | None, str]]
"""Ids, where a file of class names gives them, and names."""

_IGNORE = "__ignore__"
_IGNORED_IDS = (-1, 255)
_NAME_HEADERS = ("name", "names", "class", "classes", "label", "labels", "classname", "labelname", "category")
_ID_HEADERS = ("id", "index", "idx", "value", "classid", "labelid", "classindex", "labelindex", "pixel")
_KEYS = ("names", "class_names", "classes", "categories", "labels", "id2label", "label2id", "class_to_idx")
_NONE = re.compile(
    r"(?:backgrounds?|non?|not|none|without)[ _-].*|no|bg|neg(?:atives?)?|nothing|empty|normal|healthy|"
    r"unlabell?ed"
)
_LABELMAP = re.compile(r"([^:]+):(?:\d+, *\d+, *\d+(?::[^:]*){0,2}|:[^:]*:[^:]*)")
_NUMBER_NAME = re.compile(r"(\d{1,9})[.)]?(?: -)?\s+(\S.*)")
_NAME_NUMBER = re.compile(r"(\S.*?)\s+(\d{1,9})")
_FORMS = (
    (re.compile(r"\d+\s+\d+\s+\d+\s+(\D.*)"), 1, 0),
    (re.compile(r"(\D.*?)\s+\d+\s+\d+\s+\d+"), 1, 0),
    (re.compile(r"(-?\d{1,9})\s*[:=]\s*(\S.*)"), 2, 1),
    (re.compile(r"(\S.*?)\s*[:=]\s*(-?\d{1,9})"), 1, 2),
    (_NUMBER_NAME, 2, 1),
    (_NAME_NUMBER, 1, 2),
)
"""Lines of a name with an id or a colour, the group of the name, and that of the id (0: none)."""


def plain(name: str) -> str:
    """Return a name without outer spaces and with accents in one spelling (NFC), for comparison."""
    return unicodedata.normalize("NFC", name.strip())


def tell_of_none(names: Iterable[str], tell: Tell) -> None:
    """Tell which of some classes found in the data may be pictures that show none of the others."""
    if found := [name for name in names if _NONE.fullmatch(name.casefold())]:
        cure = "if that means a picture without any other class, name it background"
        tell(f"taken as classes of their own: {quoted(found)}; {cure}")


def read_class_names(path: Path, tell: Tell = untold) -> tuple[str, ...]:
    """Return the class names of a file in the order of their ids 1..C, without background.

    The file holds one name a line, or is what other tools write: labelme's and YOLO's lists, `id name`,
    CVAT's labelmap, CSV with a header or colours, lists and maps in JSON or YAML.

    Args:
        path: the file.
        tell: takes a line with the ids if the file is more than one name a line.

    Raises:
        DataError: the file is absent, not UTF-8, names no class or one twice, or has ids that are not
            0 for background and 1..C.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"no file of class names {path}; it holds one name a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    if text.lstrip().startswith(("<?xml", "item {", "item{")):
        raise DataError(f"{path} is XML or a TensorFlow label map, which is not read; write one name a line")
    listed = [(number, plain(name)) for number, name in _listed(path, text)]
    has_ids = any(number is not None for number, _ in listed)
    names = _by_id(path, listed) if has_ids else _in_order(path, [name for _, name in listed if name])
    if not all(names) or not names:
        raise DataError(f"{path} names no class; it holds one name a line")
    if odd := next((name for name in names if not name.isprintable()), None):
        raise DataError(f"{path}: {odd!r} holds a tab or another sign that cannot be printed; mend it")
    if all(re.fullmatch(r"\w+\s*=\s*\S.*", name) for name in names) or any(map(_is_code, names)):
        raise DataError(f"{path} holds settings or code such as '{names[0]:.60}'; write one name a line")
    if twice := sorted(name for name, number in Counter(names).items() if number > 1):
        raise DataError(f"{path} names the class '{twice[0]}' twice")
    if names[0].casefold() in (*UNLABELED, "void", "unknown"):
        tell(f"'{names[0]}' is class 1 of {path.name}; if it is id 0 in the masks, call it background")
    if names != [name for line in text.splitlines() if (name := plain(line))]:
        shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:10], start=1))
        tell(f"classes of {path.name}: {shown}{', ...' if len(names) > 10 else ''} ({len(names)} in all)")
    return tuple(names)


def class_names_of(
    tags: Iterable[Collection[str] | None], where: str, also: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return all names that occur and those of `also`, sorted: numbers by their value, before words.

    Raises:
        DataError: none occurs in `tags`, in which a mere text is a reason why there are none.
    """
    names = {name for record in tags if record and not isinstance(record, str) for name in record}
    if not names:
        raise DataError(f"no tag in {where}; name the column that holds them")
    numbered = [(0, int(name), name) if name.isdecimal() else (1, 0, name) for name in {*names, *also}]
    return tuple(name for *_, name in sorted(numbered))


class TagIndex:
    """Turns tags into sorted 0-based indices of class names."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._index = {plain(name): number for number, name in enumerate(class_names)}
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._near: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return plain(name) in self._index

    def __call__(self, tags: Iterable[str]) -> tuple[int, ...]:
        """Return the indices; raises `RecordError` for a tag that is no class."""
        found = set()
        for tag in tags:
            if plain(tag) not in self._index:
                if tag not in self._near:
                    self._near[tag] = nearest_name(plain(tag), self._index)
                raise RecordError(
                    f"tag '{tag}' is no class of this data set{self._near[tag]}; mend it, or add the class"
                )
            found.add(self._index[plain(tag)])
        indices = tuple(sorted(found))
        # The same few combinations come again and again: one object for each saves memory.
        return self._known.setdefault(indices, indices)


def _in_order(path: Path, listed: list[str]) -> list[str]:
    """Return the classes of a list without ids: background, if it is there, comes first."""
    names = listed
    if names[:1] == [_IGNORE]:
        if not is_background("".join(names[1:2])):
            raise DataError(f"{path}: after {_IGNORE} comes _background_, which is id 0; put it there")
        names = names[1:]
    if is_background("".join(names[:1])):
        names = names[1:]
    for place, name in enumerate(names, start=len(listed) - len(names)):
        if is_background(name) or name == _IGNORE:
            raise DataError(
                f"{path}: '{name}' is name {place + 1} of the list, so the ids are unclear: background is "
                f"id 0 and comes first, only {_IGNORE} before it; move it there, or take it out"
            )
    return names


def _by_id(path: Path, listed: _Listed) -> list[str]:
    """Return the classes of a list with ids: 0 is background, 1..C are classes, 255 and -1 are ignored."""
    cure = "number the classes from 1, or write one name a line without ids"
    names: dict[int, str] = {}
    for number, name in listed:
        if number is None or number in names:
            raise DataError(f"{path} gives '{name}' no id, or the id of another name; {cure}")
        if (number == 0) != is_background(name):
            raise DataError(f"{path}: '{name}' has id {number}, but id 0 is background and no other; {cure}")
        names[number] = name
    ids = sorted(names.keys() - {0, *_IGNORED_IDS})
    if ids != list(range(1, len(ids) + 1)):
        raise DataError(
            f"{path}: {len(ids)} classes have the ids 1..{len(ids)}, not {ids[0]}..{ids[-1]}; {cure} "
            "(put names that begin with a number in quotation marks)"
        )
    return [names[number] for number in ids]


def _listed(path: Path, text: str) -> _Listed:
    """Return what a file of class names lists, whatever its form."""
    ending, start = path.suffix.lower(), text.lstrip()[:1]
    if ending in (".json", ".yaml", ".yml") or start in ("[", "{", "("):
        try:
            return _of_content(_content(text))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            if ending in (".json", ".yaml", ".yml"):
                raise DataError(
                    f"{path} holds neither a list of names nor names with ids; write one name a line"
                ) from error
    rows = _rows(text)
    if (
        ending in (".csv", ".tsv")
        and rows
        and not re.search("[,;\t]", rows[0])
        and _letters(rows[0]) in _NAME_HEADERS
    ):
        rows = rows[1:]
    for form_of in (_of_labelmap, _of_columns, _of_words):
        if rows and (found := form_of(rows)) is not None:
            return found
    if ending in (".csv", ".tsv") and any(re.search(r"[,;\t]\s*\S", row) for row in rows):
        raise DataError(f"{path}: no column is surely that of the names; give it the header 'name'")
    return [(None, _unquoted(row)) for row in rows]


def _content(text: str) -> Any:
    """Return JSON or YAML with all numbers as text; raises `ValueError`, `YAMLError` or `RecursionError`."""
    try:
        if text.lstrip().startswith("("):
            return list(ast.literal_eval(text.strip()))
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (json.JSONDecodeError, SyntaxError, TypeError):
        return yaml.load(text, Loader=yaml.BaseLoader)  # all scalars stay text


def _of_content(content: Any) -> _Listed:
    """Return names and ids of a list or map; raises `ValueError` if it is neither."""
    if isinstance(content, dict):
        for key in _KEYS:
            if isinstance(inner := content.get(key), list | dict):
                found = _of_content(inner)
                # YOLO counts its classes from 0 and knows no background: their order is what it says.
                in_order = sorted(found, key=lambda pair: pair[0] or 0)
                return [(None, name) for _, name in in_order] if key == "names" else found
        if all(map(_is_number, content)) and all(isinstance(name, str) for name in content.values()):
            content = {name: number for number, name in content.items()}
        if not all(isinstance(name, str) and _is_number(number) for name, number in content.items()):
            raise ValueError("no ids")
        return [(int(number), name) for name, number in content.items()]
    if not isinstance(content, list):
        raise ValueError("no list")
    listed: _Listed = []
    for item in content:
        entry = (
            {_letters(key): value for key, value in item.items()}
            if isinstance(item, dict)
            else {"name": item}
        )
        name = next((entry[key] for key in _NAME_HEADERS if isinstance(entry.get(key), str)), None)
        if name is None:
            raise ValueError("no name")
        number = next((int(entry[key]) for key in _ID_HEADERS if _is_number(entry.get(key))), None)
        listed.append((number, name))
    return listed


def _rows(text: str) -> list[str]:
    """Return the lines of a text without empty ones, comments and signs of a list."""
    rows = [row for line in text.splitlines() if (row := plain(line))]
    if not all(row.startswith("#") for row in rows):
        rows = [re.sub(r"\s+#\s.*", "", row) for row in rows if not row.startswith("#")]
    signs = [re.fullmatch(r"[-*•]\s+(.*)", row) for row in rows]
    return [sign[1] for sign in signs if sign] if all(signs) else rows


def _of_labelmap(rows: Sequence[str]) -> _Listed | None:
    """Return the names of CVAT's labelmap (`name:r,g,b:parts:actions`); its last may be `ignored`."""
    found = [_LABELMAP.fullmatch(row) for row in rows]
    names = [match[1] for match in found if match]
    if len(names) < len(rows):
        return None
    return [(None, name) for name in (names[:-1] if names[-1] == "ignored" else names)]


def _of_columns(rows: Sequence[str]) -> _Listed | None:
    """Return names and ids of rows of cells, separated by `,`, `;` or tab, with or without a header."""
    for separator in ",;\t":
        if not any(separator in row for row in rows):
            continue
        try:
            cells = [
                [cell.strip() for cell in row]
                for row in csv.reader((row.rstrip(f"{separator} ") for row in rows), delimiter=separator)
            ]
        except csv.Error:
            continue
        if len({len(row) for row in cells}) > 1:
            continue
        if len(cells[0]) == 1:
            return [(None, _unquoted(row[0])) for row in cells]
        if (found := _of_cells(cells)) is not None:
            return found
    return None


def _of_cells(cells: list[list[str]]) -> _Listed | None:
    """Return names and ids of rows of two or more cells; None where no column is surely that of the names."""
    header = [_letters(cell) for cell in cells[0]]
    headed = len(cells) > 1 and any(word in _NAME_HEADERS for word in header)
    columns = list(zip(*(cells[1:] if headed else cells), strict=True))
    numeric = [place for place, column in enumerate(columns) if all(map(_is_number, column))]
    words = [place for place in range(len(columns)) if place not in numeric]
    if headed:
        words = [place for place in words if header[place] in _NAME_HEADERS]
        words = sorted(words, key=lambda place: _NAME_HEADERS.index(header[place]))[:1]
        numeric = [place for place in numeric if header[place] in (*_ID_HEADERS, *_NAME_HEADERS)]
    elif len(cells) == 1 and not numeric:
        return [(None, _unquoted(name)) for name in cells[0]]
    elif len(numeric) == 3 or (len(numeric) == 4 and words != [1]):
        numeric = [] if len(numeric) == 3 else numeric  # three numbers are a colour
    elif len(numeric) == 4:
        numeric = numeric[:1]
    if len(words) != 1 or len(numeric) > 1:
        return None
    ids = [int(cell) for cell in columns[numeric[0]]] if numeric else [None] * len(columns[0])
    return list(zip(ids, map(_unquoted, columns[words[0]]), strict=True))


def _of_words(rows: Sequence[str]) -> _Listed | None:
    """Return names and ids of rows such as `1 cat`, `1: cat`, `cat: 1`, `64 0 128 cat` or `cat 64 0 128`."""
    for form, name, number in _FORMS:
        found = [match for row in rows if (match := form.fullmatch(row))]
        if len(found) < len(rows):
            continue
        listed = [(int(match[number]) if number else None, _unquoted(match[name])) for match in found]
        ids, names = zip(*listed, strict=True)
        # `2 door` and `4 door` are names, so are `part 1` and `part 2`.
        if form in (_NUMBER_NAME, _NAME_NUMBER) and not _counts(ids, names, strict=form is _NAME_NUMBER):
            continue
        return listed
    return None


def _counts(ids: Sequence[int], names: Sequence[str], strict: bool) -> bool:
    """Whether numbers beside names are ids; `strict`: only if they are 0.. or 1.. without a gap."""
    if strict and (len(ids) < 2 or len(set(names)) < len(names) or max(ids) - min(ids) >= len(ids)):
        return False
    return min(ids) <= 1 and len(set(ids)) == len(ids) and (len(names) == 1 or len(set(names)) > 1)


def _is_number(cell: Any) -> bool:
    """Whether a cell is text of an integer."""
    return isinstance(cell, str) and re.fullmatch(r"-?\d{1,9}", cell) is not None


def _is_code(name: str) -> bool:
    """Whether a name has brackets that are not closed."""
    return any(name.count(opening) != name.count(closing) for opening, closing in ("()", "[]", "{}"))


def _letters(word: str) -> str:
    """Return the letters of a header in lower case."""
    return re.sub(r"[^a-z]", "", word.casefold())


def _unquoted(name: str) -> str:
    """Return a name without separators after it and without quotation marks around it."""
    name = name.strip().rstrip(",;").rstrip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
