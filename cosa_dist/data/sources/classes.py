"""Class names from a file or from the data, and tags as names turned into indices."""

from __future__ import annotations

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
from cosa_dist.data.sources.record import Notify, Tags, ignore_notes, letters, plain, read_text

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
_LABELMAP = re.compile(r"([^:]+):[\d, ]*:[^:]*:[^:]*")
_GAP = r"[\s,:;]+"
_COLOUR = _GAP.join([r"\d{1,3}"] * 3)
_ID, _NAME = r"(?P<id>-?\d{1,9})", r"(?P<name>\S.*?)"
_ID_NAME, _NAME_ID = rf"{_ID}(?:[.)]|\s-)?\s+{_NAME}", rf"{_NAME}\s+{_ID}"
_FORMS = (
    rf"{_ID}{_GAP}{_NAME}{_GAP}{_COLOUR}",
    rf"{_NAME}[,;\t]{_ID}[,;\t]{_COLOUR}",
    rf"{_ID}{_GAP}{_COLOUR}{_GAP}(?P<name>\D.*)",
    rf"{_COLOUR}{_GAP}(?P<name>\D.*)",
    rf"{_NAME}{_GAP}{_COLOUR}",
    rf"{_ID}\s*[:=,;\t]\s*{_NAME}",
    rf"{_NAME}\s*[:=,;\t]\s*{_ID}",
    _ID_NAME,
    _NAME_ID,
)
"""Lines of a name with an id or a colour or both."""


def read_class_names(path: Path, notify: Notify = ignore_notes) -> tuple[str, ...]:
    """Return the class names of a file in the order of their ids 1..C, without background.

    The file holds one name a line, or is what other tools write: labelme's and YOLO's lists, `id name`,
    CVAT's labelmap, CSV with a header or colours, lists and maps in JSON or YAML. `notify` takes the ids if
    the file is more than one name a line. Raises `DataError` if the file names no class or one twice, or has
    ids that are not 0 for background and 1..C.
    """
    text = read_text(path, "file of class names", "; it holds one name a line")
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
    start = 1 if listed[:1] == [_IGNORE] and is_background("".join(listed[1:2])) else 0
    start += is_background("".join(listed[start : start + 1]))
    for place, name in enumerate(listed[start:], start + 1):
        if is_background(name) or name == _IGNORE:
            raise DataError(
                f"{path}: '{name}' is name {place} of the list, so the ids are unclear: background is id 0 "
                f"and comes first, only {_IGNORE} before it; move it there, or take it out"
            )
    return listed[start:]


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
    structured = path.suffix.lower() in (".json", ".yaml", ".yml")
    if structured or text.lstrip().startswith(("[", "{")):
        try:
            return _of_content(_content(text))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            if structured:
                said = "holds neither a list of names nor names with ids"
                raise DataError(f"{path} {said}; write one name a line") from error
    rows = [row for line in text.splitlines() if (row := plain(line))]
    if not all(row.startswith("#") for row in rows):
        rows = [re.sub(r"\s+#\s.*", "", row) for row in rows if not row.startswith("#")]
    signs = [re.fullmatch(r"[-*•]\s+(.*)", row) for row in rows]
    rows = [sign[1] for sign in signs if sign] if all(signs) else rows
    table = path.suffix.lower() in (".csv", ".tsv")
    if listed := _of_labelmap(rows) or _of_table(rows, table):
        return listed
    listed = _of_rows(rows)
    if table and any(re.search(r"[,;\t]", name) for _, name in listed if name in rows):
        raise DataError(f"{path}: no column is surely that of the names; give it the header 'name'")
    return listed


def _content(text: str) -> Any:
    """Return JSON or YAML with all numbers as text; raises `ValueError`, `YAMLError` or `RecursionError`."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError:
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
        if not all(map(_is_number, content.values())):
            raise ValueError("no ids")
        content = [{"name": name, "id": number} for name, number in content.items()]
    if not isinstance(content, list):
        raise ValueError("no list")
    listed: _Listed = []
    for item in content:
        entry = {letters(key): item[key] for key in item} if isinstance(item, dict) else {"name": item}
        name = next((entry[key] for key in _NAME_HEADERS if isinstance(entry.get(key), str)), None)
        if name is None:
            raise ValueError("no name")
        number = next((int(entry[key]) for key in _ID_HEADERS if _is_number(entry.get(key))), None)
        listed.append((number, name))
    return listed


def _of_labelmap(rows: Sequence[str]) -> _Listed | None:
    """Return the names of CVAT's labelmap (`name:r,g,b:parts:actions`); its last may be `ignored`."""
    names = [match[1] for row in rows if (match := _LABELMAP.fullmatch(row))]
    if len(names) < len(rows):
        return None
    return [(None, name) for name in (names[:-1] if names[-1:] == ["ignored"] else names)]


def _of_table(rows: Sequence[str], table: bool) -> _Listed | None:
    """Return names and ids of a table whose first row names the column of the names."""
    cells: list[list[str]] = []
    separator = max(",;\t", key="".join(rows[:1]).count)
    with contextlib.suppress(csv.Error):
        cells = [[_unquoted(cell) for cell in row] for row in csv.reader(rows, delimiter=separator)]
    if len(cells) == 1 and len(cells[0]) > 1 and not any(map(_is_number, cells[0])):
        return [(None, name) for name in cells[0] if name]
    header = [letters(cell) for cell in cells[0]] if cells else []
    if len(cells) < 2 or not (table or len(header) > 1) or {*map(len, cells)} != {len(header)}:
        return None
    columns = dict(zip(reversed(header), reversed([*zip(*cells[1:], strict=True)]), strict=True))
    numeric = {head for head, column in columns.items() if all(map(_is_number, column))}
    name = next((head for head in _NAME_HEADERS if head in columns and head not in numeric), None)
    if name is None:
        return None
    number = next((head for head in (*_ID_HEADERS, *_NAME_HEADERS) if head in numeric), None)
    ids = map(int, columns[number]) if number else [None] * len(columns[name])
    return list(zip(ids, columns[name], strict=True))


def _of_rows(rows: Sequence[str]) -> _Listed:
    """Return names and ids of rows such as `1 cat`, `cat: 1` or `64 0 128 cat`, else the rows as names."""
    for form in _FORMS:
        found = [match.groupdict() for row in rows if (match := re.fullmatch(form, row))]
        if not found or len(found) < len(rows):
            continue
        names = [_unquoted(entry["name"]) for entry in found]
        if "id" not in found[0]:
            return [(None, name) for name in names]
        ids = [int(entry["id"]) for entry in found]
        # `2 door` and `4 door` are names, so are `part 1` and `part 2`.
        if form not in (_ID_NAME, _NAME_ID) or _counts(ids, names, strict=form == _NAME_ID):
            return list(zip(ids, names, strict=True))
    return [(None, _unquoted(row)) for row in rows]


def _counts(ids: Sequence[int], names: Sequence[str], strict: bool) -> bool:
    """Whether numbers beside names are ids; `strict`: only if they are 0.. or 1.. without a gap."""
    if strict and (len(ids) < 2 or len(set(names)) < len(names) or max(ids) - min(ids) >= len(ids)):
        return False
    return min(ids) <= 1 and len(set(ids)) == len(ids) and (len(names) == 1 or len(set(names)) > 1)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, str) and re.fullmatch(r"-?\d{1,9}", cell) is not None


def _is_code(name: str) -> bool:
    unbalanced = any(name.count(opening) != name.count(closing) for opening, closing in ("()", "[]", "{}"))
    return unbalanced or name.startswith("<?xml")


def _unquoted(name: str) -> str:
    """Return a name without separators after it and without quotation marks around it."""
    name = name.strip().rstrip(",;").rstrip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
