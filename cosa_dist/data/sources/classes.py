"""Class names from a file or from the data, and tags as names turned into indices."""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cosa_dist.data.catalog import is_background, may_be_background, may_mean_none
from cosa_dist.data.errors import DataError, nearest_name, printable, quoted
from cosa_dist.data.sources.cells import Tags
from cosa_dist.data.sources.options import Notify, ignore_notes, letters, plain
from cosa_dist.data.sources.record import read_text

Indices = Callable[[Tags], tuple[int, ...] | str]
"""Turns tags into sorted 0-based indices of class names, or says why it cannot."""

_Listed = list[tuple[int | None, str]]
"""Ids, where a file of class names gives them, and names."""

_IGNORE = "__ignore__"
_NOT_CLASSES = {0, -1, 255}
"""Ids of background and of what is ignored."""
_NAME_HEADERS = ("name", "names", "class", "classes", "label", "labels", "classname", "labelname", "category")
_ID_HEADERS = ("id", "index", "idx", "value", "classid", "labelid", "classindex", "labelindex", "pixel")
_KEYS = ("names", "class_names", "classes", "categories", "labels", "id2label", "label2id", "class_to_idx")
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


def read_class_names(path: Path, notify: Notify = ignore_notes) -> tuple[str, ...]:
    """Return the class names of a file in the order of their ids 1..C, without background.

    The file holds one name a line, or is what other tools write: labelme's and YOLO's lists, `id name`,
    CVAT's labelmap, CSV with a header or colours, lists and maps in JSON or YAML. `notify` takes the ids if
    the file is more than one name a line. Raises `DataError` if the file names no class or one twice, or has
    ids that are not 0 for background and 1..C.
    """
    text = read_text(path, "file of class names", "; it holds one name a line")
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
    if may_be_background(names[0]):
        notify(f"'{names[0]}' is class 1 of {path.name}; if it is id 0 in the masks, call it background")
    if names != [name for line in text.splitlines() if (name := plain(line))]:
        shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:10], start=1))
        notify(f"classes of {path.name}: {shown}{', ...' if len(names) > 10 else ''} ({len(names)} in all)")
    return tuple(names)


def class_names_of(
    tags: Iterable[Collection[str] | None], where: str, also: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return all names in `tags` and of `also`, sorted: numbers by their value, before words.

    A mere text in `tags` is a reason why there are none. Raises `DataError` if no name occurs in `tags`.
    """
    names = {name for record in tags if record and not isinstance(record, str) for name in record}
    if not names:
        raise DataError(f"no tag in {where}; name the column that holds them")
    numbered = [(0, int(name), name) if name.isdecimal() else (1, 0, name) for name in {*names, *also}]
    return tuple(name for *_, name in sorted(numbered))


def note_none_classes(names: Iterable[str], notify: Notify) -> None:
    """Note which of some classes found in the data may be pictures that show none of the others."""
    if found := list(filter(may_mean_none, names)):
        cure = "if that means a picture without any other class, name it background"
        notify(f"taken as classes of their own: {quoted(found)}; {cure}")


def tag_indices(class_names: Sequence[str]) -> Indices:
    """Return what turns tags into indices of these class names."""
    index = {plain(name): number for number, name in enumerate(class_names)}

    @cache  # the same few combinations come again and again: one object for each saves memory
    def indices(tags: Tags) -> tuple[int, ...] | str:
        if isinstance(tags, str):
            return tags
        for tag in tags:
            if plain(tag) not in index:
                said = f"tag '{tag}' is no class of this data set{nearest_name(plain(tag), index)}"
                return printable(f"{said}; mend it, or add the class")
        return tuple(sorted({index[plain(tag)] for tag in tags}))

    return indices


def _in_order(path: Path, listed: list[str]) -> list[str]:
    """Return the classes of a list without ids: background, if it is there, comes first."""
    names = listed[1:] if listed[:1] == [_IGNORE] else listed
    if is_background("".join(names[:1])):
        names = names[1:]
    elif names is not listed:
        raise DataError(f"{path}: after {_IGNORE} comes _background_, which is id 0; put it there")
    if late := next((name for name in names if is_background(name) or name == _IGNORE), None):
        place = len(listed) - len(names) + names.index(late) + 1
        raise DataError(
            f"{path}: '{late}' is name {place} of the list, so the ids are unclear: background is id 0 and "
            f"comes first, only {_IGNORE} before it; move it there, or take it out"
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
    ids = sorted(names.keys() - _NOT_CLASSES)
    if ids != list(range(1, len(ids) + 1)):
        raise DataError(
            f"{path}: {len(ids)} classes have the ids 1..{len(ids)}, not {ids[0]}..{ids[-1]}; {cure} "
            "(put names that begin with a number in quotation marks)"
        )
    return [names[number] for number in ids]


def _listed(path: Path, text: str) -> _Listed:
    ending = path.suffix.lower()
    structured, table = ending in (".json", ".yaml", ".yml"), ending in (".csv", ".tsv")
    if structured or text.lstrip().startswith(("[", "{", "(")):
        try:
            return _of_content(_content(text))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            if structured:
                said = "holds neither a list of names nor names with ids"
                raise DataError(f"{path} {said}; write one name a line") from error
    rows = _rows(text)
    if table and rows and not re.search("[,;\t]", rows[0]) and letters(rows[0]) in _NAME_HEADERS:
        rows = rows[1:]
    for form_of in (_of_labelmap, _of_columns, _of_words):
        if rows and (found := form_of(rows)) is not None:
            return found
    if table and any(re.search(r"[,;\t]\s*\S", row) for row in rows):
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
        entry = {letters(key): item[key] for key in item} if isinstance(item, dict) else {"name": item}
        name = next((entry[key] for key in _NAME_HEADERS if isinstance(entry.get(key), str)), None)
        if name is None:
            raise ValueError("no name")
        listed.append(
            (next((int(entry[key]) for key in _ID_HEADERS if _is_number(entry.get(key))), None), name)
        )
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
    names = [match[1] for row in rows if (match := _LABELMAP.fullmatch(row))]
    if len(names) < len(rows):
        return None
    return [(None, name) for name in (names[:-1] if names[-1] == "ignored" else names)]


def _cells(rows: Sequence[str]) -> list[list[str]]:
    """Return the cells of rows by whichever of `,`, `;` and tab parts all of them alike, into most cells."""
    found: list[list[list[str]]] = [[]]
    for separator in (sign for sign in ",;\t" if any(sign in row for row in rows)):
        ended = (row.rstrip(f"{separator} ") for row in rows)
        with contextlib.suppress(csv.Error):
            cells = [[_unquoted(cell) for cell in row] for row in csv.reader(ended, delimiter=separator)]
            if len(set(map(len, cells))) == 1:
                found.append(cells)
    return max(found, key=lambda cells: len(cells[0]) if cells else 0)


def _of_columns(rows: Sequence[str]) -> _Listed | None:
    """Return names and ids of rows of cells, if one column is surely that of the names."""
    if not (cells := _cells(rows)):
        return None
    header = [letters(cell) for cell in cells[0]]
    headed = len(cells) > 1 < len(header) and any(word in _NAME_HEADERS for word in header)
    columns = list(zip(*(cells[1:] if headed else cells), strict=True))
    numeric = [place for place, column in enumerate(columns) if all(map(_is_number, column))]
    words = [place for place in range(len(columns)) if place not in numeric]
    if headed:
        named = [place for place in words if header[place] in _NAME_HEADERS]
        words = sorted(named, key=lambda place: _NAME_HEADERS.index(header[place]))[:1]
        numeric = [place for place in numeric if header[place] in (*_ID_HEADERS, *_NAME_HEADERS)]
    elif len(cells) == 1 and not numeric:
        return [(None, name) for name in cells[0]]
    elif len(numeric) == 3:
        numeric = []  # a colour
    elif len(numeric) == 4 and words == [1]:
        numeric = numeric[:1]  # id, name, colour
    if len(words) != 1 or len(numeric) > 1:
        return None
    ids = map(int, columns[numeric[0]]) if numeric else [None] * len(columns[0])
    return list(zip(ids, columns[words[0]], strict=True))


def _of_words(rows: Sequence[str]) -> _Listed | None:
    """Return names and ids of rows such as `1 cat`, `1: cat`, `cat: 1`, `64 0 128 cat` or `cat 64 0 128`."""
    for form, name, number in _FORMS:
        found = [match for row in rows if (match := form.fullmatch(row))]
        if len(found) < len(rows):
            continue
        listed = [(int(match[number]) if number else None, _unquoted(match[name])) for match in found]
        ids, names = zip(*listed, strict=True)
        # `2 door` and `4 door` are names, so are `part 1` and `part 2`.
        if form not in (_NUMBER_NAME, _NAME_NUMBER) or _counts(ids, names, strict=form is _NAME_NUMBER):
            return listed
    return None


def _counts(ids: Sequence[int], names: Sequence[str], strict: bool) -> bool:
    """Whether numbers beside names are ids; `strict`: only if they are 0.. or 1.. without a gap."""
    if strict and (len(ids) < 2 or len(set(names)) < len(names) or max(ids) - min(ids) >= len(ids)):
        return False
    return min(ids) <= 1 and len(set(ids)) == len(ids) and (len(names) == 1 or len(set(names)) > 1)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, str) and re.fullmatch(r"-?\d{1,9}", cell) is not None


def _is_code(name: str) -> bool:
    return any(name.count(opening) != name.count(closing) for opening, closing in ("()", "[]", "{}"))


def _unquoted(name: str) -> str:
    """Return a name without separators after it and without quotation marks around it."""
    name = name.strip().rstrip(",;").rstrip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
