"""One cell of tags: the words and numbers in a name, a list, or a list that was written as text."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cosa_dist.data.catalog import UNLABELED
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.sources.classes import plain
from cosa_dist.data.sources.record import Tell, untold

MISSING = frozenset(("", "-", "--", "?", "nan", "na", "n/a", "<na>", "#n/a", "#na", "nat", "none", "null"))
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "-1", "false", "no")
_TICKS, _NO_TICKS = ("x", "t", "y", "✓", "✔"), ("f", "n")
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


@dataclass(frozen=True)
class TagRules:
    """What the user said of the tags, and whom to tell how they were read."""

    classes: tuple[str, ...] | None = None
    separator: str | None = None
    tell: Tell = untold
    explicit: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if self.separator == "":
            raise DataError("--tags-separator is empty; give the text between two tags")
        object.__setattr__(self, "explicit", frozenset(map(plain, self.classes or ())))


def shown(value: object) -> str:
    """Return a value for a message: short, printable, never bytes or what is nested."""
    parts = value if isinstance(value, list | tuple) else [value]
    if all(part is None or isinstance(part, str | int | float) for part in parts):
        return f"{value!r:.60}"
    return f"a value of type {type(value).__name__}"


def text_of(cell: Any) -> str:
    """Return a cell of a name or an id as text without outer spaces, a whole number without a point."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


@lru_cache(maxsize=4096)
def truth(cell: object, ticks: bool = False) -> bool | None:
    """Return whether a cell of 0 and 1 says that a class is there: 0, -1 and false no, blank None.

    `ticks` takes letters such as `x` for it too.

    Raises:
        ValueError: the cell holds something else.
        TypeError: it holds a list or the like.
    """
    if cell is not None and (not isinstance(cell, str | int | float) or len(str(cell)) > 16):
        raise ValueError
    word = str(cell).strip().casefold()
    word = re.split("[.,]", word)[0] if _WHOLE.fullmatch(word) else word
    if word in MISSING or word in UNLABELED:
        return None
    if ticks and word in (*_TICKS, *_NO_TICKS):
        return word in _TICKS
    if word not in (*_TRUE, *_FALSE):
        raise ValueError
    return word in _TRUE


def cell_words(cell: Any, rules: TagRules, examples: dict[str, str]) -> tuple[str, ...]:
    """Return the words and numbers in a cell, repeated ones too, blanks of lists as empty texts.

    Raises:
        RecordError: the cell holds something else.
    """
    if cell is None or cell != cell:
        return ()
    if isinstance(cell, str):
        parts = _parts(plain(cell), rules, examples)
    else:
        parts = list(cell) if isinstance(cell, list | tuple) else [cell]
    words = []
    for part in parts:
        if part is None or part != part:
            part = ""
        elif isinstance(part, float) and part.is_integer():
            part = int(part)
        elif isinstance(part, float):
            raise RecordError(
                f"tags hold {part:.3g}, which numbers no class and is neither 0 nor 1; mend the row"
            )
        elif not isinstance(part, str | int):
            raise RecordError(f"tags are neither text nor a list of names: {shown(cell)}; mend the row")
        word = plain(str(part))
        words.extend([word] if word in rules.explicit else _split(word, rules.separator))
    for word in words:
        if len(word) > _MAX_NAME or any(unicodedata.category(character) == "Cc" for character in word):
            raise RecordError(f"a tag is too long or holds control characters: {shown(word)}; mend the row")
    return tuple(words)


def _parts(text: str, rules: TagRules, examples: dict[str, str]) -> list[Any]:
    """Return the parts of a text cell: of a list its items, else what is between separators."""
    if text in rules.explicit:
        return [text]
    listed = listed_text(text)
    if listed is not None:
        examples.setdefault("lists", text)
        return listed
    if rules.separator is not None:
        return [text]
    if _NUMBERS.fullmatch(text):
        examples.setdefault("several numbers", text)
        return text.split()
    return [part for part in re.split(r"[;|]" if re.search(r"[;|]", text) else ",", text) if part.strip()]


def _split(word: str, separator: str | None) -> list[str]:
    """Return a word parted at the separator that the user named; any white space is one blank."""
    if separator is None:
        return [word]
    parts = word.split(separator if separator.strip() else None)
    return [stripped for part in parts if (stripped := plain(part))]


def listed_text(text: str) -> list[Any] | None:
    """Return the items of a list written as text by Python, JSON, numpy or a database, else None.

    Raises:
        RecordError: a list that is not closed, is nested, abbreviated, or no list of names.
    """
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip() or "[]"
    if text[:1] not in _CLOSING:
        return None
    quoted = re.match(r"""\s*u?['"]""", text[1:]) is not None
    if len(text) < 2 or text[-1] != _CLOSING[text[0]]:
        if quoted:
            raise RecordError(f"tags are a list without an end: {shown(text)}; put the cell into quotes")
        return None
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        loaded = None
    if isinstance(loaded, list):
        return loaded
    inner = text[1:-1].strip()
    if text[0] == "(" and inner and not (quoted or "," in inner or _NUMBERS.fullmatch(inner)):
        return None
    items: list[str] | None
    if quoted or re.search(r""",\s*['"]""", inner):
        items = _tokens(inner)
    elif "..." in inner or re.search(r"[\[\]{}]", inner):
        items = None
    else:
        items = re.split(r"\s+" if _NUMBERS.fullmatch(inner) else r"\s*[,;|]\s*", inner)
        items = [item.split(".")[0] for item in items] if all(map(NUMBER.fullmatch, items)) else items
    if items is None or "..." in items:
        raise RecordError(f"tags are no complete list of names: {shown(text)}; mend the row")
    return [word for item in items if (word := item.strip())]


def _tokens(inner: str) -> list[str] | None:
    """Return the quoted texts and bare words between a list's brackets; None if there is anything else."""
    tokens, place = [], 0
    while place < len(inner):
        found = _TOKEN.match(inner, place)
        if found is None:
            return None
        try:
            tokens.append(found[2] or str(ast.literal_eval(found[1])))
        except (ValueError, SyntaxError):
            tokens.append(found[1].strip("u")[1:-1])
        place = found.end()
    return tokens
