"""One cell of tags: the words and numbers in a name, a list, or a list that was written as text."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

from cosa_dist.data.catalog import UNLABELED
from cosa_dist.data.errors import RecordError
from cosa_dist.data.sources.options import SourceOptions, plain

Tags = tuple[str, ...] | str
"""The tags of a row; a text says why they cannot be read."""

MISSING = frozenset(("", "-", "--", "?", "nan", "na", "n/a", "<na>", "#n/a", "#na", "nat", "none", "null"))
_TRUTHS: dict[str, bool | None] = (
    dict.fromkeys(("1", "true", "yes"), True)
    | dict.fromkeys(("0", "-1", "false", "no"), False)
    | dict.fromkeys((*MISSING, *UNLABELED))
)
_TICKS = _TRUTHS | dict.fromkeys(("x", "t", "y", "✓", "✔"), True) | dict.fromkeys(("f", "n"), False)
NUMBER = re.compile(r"-?\d+(?:\.0*)?")
_WHOLE = re.compile(rf"{NUMBER.pattern}|-?\d+,0+")
_NUMBERS = re.compile(r"-?\d+(?:\.\d*)?(?:\s+-?\d+(?:\.\d*)?)+")
_WRAPPED = re.compile(
    r"(?:\w+\.)?(?:array|tensor|list|tuple|set|frozenset)\((.*?)(?:,\s*dtype=[^)]*)?\)", re.DOTALL
)
_TOKEN = re.compile(
    r"""\s*(?:(u?"(?:[^"\\]|\\.)*"|u?'(?:[^'\\]|\\.)*')|([^\s,:'"\[\](){}]+))\s*,?\s*""", re.DOTALL
)
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_MAX_NAME = 200


def shown(value: object) -> str:
    """Return a value for a message: short, printable, never bytes or what is nested."""
    parts = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(part, str | int | float | None) for part in parts):
        return f"{value!r:.60}"
    return f"a value of type {type(value).__name__}"


def text_of(cell: Any) -> str:
    """Return a cell of a name or an id as text without outer spaces, a whole number without a point."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


@lru_cache(maxsize=4096)
def truth(cell: object, ticks: bool = False) -> bool | None:
    """Return whether a cell says that a class is there, None for a blank; `ticks` takes letters like `x` too.

    Raises `LookupError` or `TypeError` if the cell holds something else.
    """
    if not isinstance(cell, str | int | float | None):
        raise TypeError("no cell of a table")
    word = str(cell).strip().casefold()
    word = re.split("[.,]", word)[0] if _WHOLE.fullmatch(word) else word
    return (_TICKS if ticks else _TRUTHS)[word]


def listed_text(text: str) -> list[Any] | None:
    """Return the items of a list written as text by Python, JSON, numpy or a database, else None.

    Raises `RecordError` for a list that is not closed, is nested, abbreviated, or no list of names.
    """
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip() or "[]"
    if text[:1] not in _CLOSING:
        return None
    is_quoted = re.match(r"""\s*u?['"]""", text[1:]) is not None
    if len(text) < 2 or text[-1] != _CLOSING[text[0]]:
        if is_quoted:
            raise RecordError(f"tags are a list without an end: {shown(text)}; put the cell into quotes")
        return None
    try:
        if isinstance(loaded := json.loads(text), list):
            return loaded
    except (ValueError, RecursionError):
        pass  # it may be a list of another kind
    inner = text[1:-1].strip()
    if text[0] == "(" and inner and not (is_quoted or "," in inner or _NUMBERS.fullmatch(inner)):
        return None
    items: list[str] | None = None
    if is_quoted or re.search(r""",\s*['"]""", inner):
        items = _tokens(inner)
    elif "..." not in inner and not re.search(r"[\[\]{}]", inner):
        items = re.split(r"\s+" if _NUMBERS.fullmatch(inner) else r"\s*[,;|]\s*", inner)
        items = [item.split(".")[0] for item in items] if all(map(NUMBER.fullmatch, items)) else items
    if items is None or "..." in items:
        raise RecordError(f"tags are no complete list of names: {shown(text)}; mend the row")
    return [word for item in items if (word := item.strip())]


def _tokens(inner: str) -> list[str] | None:
    """Return the quoted texts and bare words between a list's brackets; None if there is anything else."""
    found = list(_TOKEN.finditer(inner))
    return list(map(_token, found)) if sum(len(match[0]) for match in found) == len(inner) else None


def _token(match: re.Match[str]) -> str:
    try:
        return match[2] or str(ast.literal_eval(match[1]))
    except (ValueError, SyntaxError):
        return match[1].strip("u")[1:-1]


def _parts(text: str, options: SourceOptions, examples: dict[str, str]) -> list[Any]:
    """Return the parts of a text cell: of a list its items, else what is between separators."""
    if text in options.explicit:
        return [text]
    if (listed := listed_text(text)) is not None:
        examples.setdefault("lists", text)
        return listed
    if options.separator is not None:
        return [text]
    if _NUMBERS.fullmatch(text):
        examples.setdefault("several numbers", text)
        return text.split()
    return [part for part in re.split("[;|]" if re.search("[;|]", text) else ",", text) if part.strip()]


def cell_words(cell: Any, options: SourceOptions, examples: dict[str, str]) -> Tags:
    """Return the words and numbers in a cell, repeated ones too, blanks of lists as empty texts."""
    if cell is None or cell != cell:
        return ()
    try:
        parts = _parts(plain(cell), options, examples) if isinstance(cell, str) else cell
    except RecordError as error:
        return str(error)
    words: list[str] = []
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if not isinstance(part, str | int | float | None):
            return f"tags are neither text nor a list of names: {shown(cell)}; mend the row"
        if isinstance(part, float) and part == part and not part.is_integer():
            return f"tags hold {part:.3g}, which numbers no class and is neither 0 nor 1; mend the row"
        word, separator = plain(text_of(part)), options.separator
        if separator is None or word in options.explicit:
            words.append(word)
        else:  # any white space is one blank
            words += filter(None, map(plain, word.split(separator if separator.strip() else None)))
    for word in words:
        if len(word) > _MAX_NAME or any(unicodedata.category(sign) == "Cc" for sign in word):
            return f"a tag is too long or holds control characters: {shown(word)}; mend the row"
    return tuple(words)
