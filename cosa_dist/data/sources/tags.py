"""Tags as people write them: cells and columns of a table become names of classes.

What one cell leaves open is decided by its column, what a column leaves open by all names of the data set.
Names that the user lists in `--classes` are always meant as they are.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain, compress
from typing import Any

from cosa_dist.data.catalog import UNLABELED, is_no_class
from cosa_dist.data.errors import DataError, RecordError, quoted
from cosa_dist.data.sources.classes import note_none_classes
from cosa_dist.data.sources.record import SourceOptions, Tags, plain

TAG_COLUMNS = ("tags", "labels", "tag", "label", "classes", "class")
MISSING = frozenset(("", "-", "--", "?", "nan", "na", "n/a", "<na>", "#n/a", "#na", "nat", "none", "null"))
_TRUTHS: dict[str, bool | None] = (
    dict.fromkeys(("1", "true", "yes"), True)
    | dict.fromkeys(("0", "-1", "false", "no"), False)
    | dict.fromkeys((*MISSING, *UNLABELED))
)
_TICKS = _TRUTHS | dict.fromkeys(("x", "t", "y", "✓", "✔"), True) | dict.fromkeys(("f", "n"), False)
_NUMBER = re.compile(r"-?\d+(?:\.0*)?")
_DECIMAL = re.compile(r"-?\d*\.?\d+(?:e-?\d+)?|\d+\.", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"-?\d+,0+")
_NUMBERS = re.compile(r"-?\d+(?:\.\d*)?(?:\s+-?\d+(?:\.\d*)?)+")
_NUMBERING = re.compile(r"unnamed: \d+|__index_level_\d+__|index|id|image_id")
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
    if _NUMBER.fullmatch(word) or _DECIMAL_COMMA.fullmatch(word):
        word = re.split("[.,]", word)[0]
    return (_TICKS if ticks else _TRUTHS)[word]


def listed_text(text: str) -> list[Any] | None:
    """Return the items of a list written as text by Python, JSON, numpy or a database, else None.

    Raises `RecordError` for a list that is not closed, is nested, abbreviated, or no list of names.
    """
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip() or "[]"
    if text[:1] not in ("[", "(", "{"):
        return None
    is_quoted = re.match(r"""\s*u?['"]""", text[1:]) is not None
    is_closed = len(text) > 1 and text[-1] == _CLOSING[text[0]]
    inner = text[1:-1].strip()
    is_list = text[0] != "(" or not inner or "," in inner or _NUMBERS.fullmatch(inner) is not None
    if not is_quoted and not (is_closed and is_list):
        return None
    try:
        if isinstance(loaded := json.loads(text), list):
            return loaded
    except (ValueError, RecursionError):
        pass  # it may be a list of another kind
    items: list[str] = ["..."]
    if is_closed and (is_quoted or re.search(r""",\s*['"]""", inner)):
        found = list(_TOKEN.finditer(inner))
        items = list(map(_token, found)) if sum(len(match[0]) for match in found) == len(inner) else items
    elif is_closed and not re.search(r"[\[\]{}]", inner):
        items = re.split(r"\s+" if _NUMBERS.fullmatch(inner) else r"\s*[,;|]\s*", inner)
        items = [item.split(".")[0] for item in items] if all(map(_NUMBER.fullmatch, items)) else items
    if "..." in items or (not is_quoted and "..." in inner):
        raise RecordError(f"tags are no complete list of names: {shown(text)}; mend the row")
    return [word for item in items if (word := item.strip())]


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


def _cell_words(cell: Any, options: SourceOptions, examples: dict[str, str]) -> Tags:
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
    if odd := [w for w in words if len(w) > _MAX_NAME or any(unicodedata.category(c) == "Cc" for c in w)]:
        return f"a tag is too long or holds control characters: {shown(odd[0])}; mend the row"
    return tuple(words)


def united(rows: Iterable[Tags]) -> Tags:
    """Return the tags of several rows or columns together; of one that cannot be read the reason."""
    names: dict[str, None] = {}
    for tags in rows:
        if isinstance(tags, str):
            return tags
        names.update(dict.fromkeys(tags))
    return tuple(names)


def column_tags(
    cells: Sequence[Any], column: str, options: SourceOptions, *, alone: bool = True
) -> list[Tags]:
    """Return the tags in each cell of a column: names, class numbers, label vectors, or flags of one class.

    `alone`: the tags are in no other column, so that one of 0 and 1 has to name its class. Raises `DataError`
    if two readings are possible; the message names the option that decides.
    """
    texts = [text for cell in cells if (text := text_of(cell)).casefold() not in MISSING]
    decimals = all(_DECIMAL_COMMA.fullmatch(text) and text not in options.explicit for text in texts)
    if texts and decimals and options.separator is None:
        said = f"column '{column}' holds only numbers such as {texts[0]}: write them without a decimal comma"
        raise DataError(f"{said}, or say --tags-separator ',' if they are lists")
    examples: dict[str, str] = {}
    words_of_text = cache(lambda text: _cell_words(text, options, examples))
    rows = [words_of_text(c) if isinstance(c, str) else _cell_words(c, options, examples) for c in cells]
    for kind, example in examples.items():
        options.note(f"column '{column}': cells such as {example!r:.60} are read as {kind}")
    lists = [row for row in rows if isinstance(row, tuple) and row]
    values = set(chain(*lists))
    truths = _truths(values)
    if values <= options.explicit and not any(len(set(row)) < len(row) for row in lists):
        return _named(column, rows, values, options)
    if max(map(len, lists), default=0) > 1:
        return _vectors(column, rows, truths, options) or _named(column, rows, values, options)
    if alone and set(truths.values()) - {None}:
        return _flags(column, rows, truths, options)
    return _named(column, rows, values, options)


def _truths(values: Iterable[str]) -> dict[str, bool | None]:
    """Return which values say yes, no or nothing; empty if one of them says something else."""
    try:
        return {value: truth(value) for value in values}
    except LookupError:
        return {}


def _vectors(
    column: str, rows: Sequence[Tags], truths: Mapping[str, bool | None], options: SourceOptions
) -> list[Tags] | None:
    """Return the tags if the column holds label vectors, whose places are the classes; None if not."""
    lists = [row for row in rows if isinstance(row, tuple) and row]
    lengths, repeated = {*map(len, lists)}, any(len(set(row)) < len(row) for row in lists)
    signs = any(value[:1] == "-" or value.casefold() in ("true", "false", "yes", "no") for value in truths)
    is_vectors = len(lengths) == 1 and bool(set(truths.values()) - {None})
    numbers = bool(truths) or all(map(_NUMBER.fullmatch, chain(*lists)))
    if numbers and not is_vectors and (repeated or signs):
        raise DataError(
            f"column '{column}' holds lists of numbers that are neither label vectors of one length nor "
            "class numbers: write 0 and 1 for every class, or each class number once"
        )
    if not is_vectors:
        return None
    (length,), classes = lengths, options.classes or ()
    if len(classes) != length:
        given = f" (it names {len(classes)})" if classes else ""
        raise DataError(
            f"column '{column}' holds label vectors of {length} places: name the class of each, in their "
            f"order, with --classes FILE{given}"
        )
    options.note(f"column '{column}' holds label vectors: place by place the classes of --classes")
    names = tuple(map(plain, classes))
    return [row if isinstance(row, str) else tuple(compress(names, map(truths.get, row))) for row in rows]


def _flags(
    column: str, rows: Sequence[Tags], truths: Mapping[str, bool | None], options: SourceOptions
) -> list[Tags]:
    """Return the tags of a column that says of one class whether it is there."""
    classes = options.classes or ()
    alike = classes if len(classes) == 1 else by_spelling(classes).get(spelling(column), ())
    if len(alike) != 1:
        raise DataError(
            f"column '{column}' holds only {quoted(sorted(truths))}: with --classes FILE name the one class "
            "that is there or not, or these if they are classes"
        )
    options.note(f"column '{column}' says whether '{alike[0]}' is there")
    there = (plain(alike[0]),)
    return [row if isinstance(row, str) else there * any(map(truths.get, row)) for row in rows]


def _named(column: str, rows: Sequence[Tags], values: set[str], options: SourceOptions) -> list[Tags]:
    """Return names, or numbers of which `1.0` is 1; `nan` and its like are no tag."""
    rest = values - options.explicit
    missing = {value for value in rest if value.casefold() in MISSING}
    rest -= missing
    odd = sorted(value for value in rest if not _NUMBER.fullmatch(value))
    if odd and all(map(_DECIMAL.fullmatch, rest)):
        raise DataError(
            f"column '{column}' holds numbers such as {odd[0]}, which name no classes; write names or whole "
            "numbers, or list them in --classes if they are classes"
        )
    numbers = all(map(is_no_class, odd))
    missing |= {value for value in rest if numbers and value.startswith("-")}
    names = {value: value for value in values & options.explicit}
    names |= {value: value.split(".")[0] if numbers else value for value in rest - missing}
    if said := sorted(missing - {""}):
        cure = "name in --classes what is a class"
        options.note(f"column '{column}': taken as no tag: {quoted(said)} ({cure})")
    return _renamed(rows, names)


def _renamed(rows: Sequence[Tags], names: Mapping[str, str]) -> list[Tags]:
    """Return the rows by other names, each once, without those that have none; equal rows are one object."""
    made: dict[Tags, Tags] = {
        tags: tags if isinstance(tags, str) else tuple(dict.fromkeys(names[n] for n in tags if n in names))
        for tags in set(rows)
    }
    return [made[tags] for tags in rows]


def spelling(name: str) -> str:
    """Return what names that differ only in case, blanks, `_` and `-` have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    folded = "".join(sign for sign in folded if unicodedata.category(sign) != "Cf")
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", folded).strip()


def by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names grouped by what `spelling` makes of them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(spelling(name), []).append(name)
    return groups


def settled(rows: Sequence[Tags], options: SourceOptions, known: Iterable[str] = ()) -> list[Tags]:
    """Return the tags of all rows of a data set with one spelling for each class, without background.

    `known` are classes as they are where the user listed none. Raises `DataError` for a tag that is made of
    other tags and a separator.
    """
    counts = Counter(name for tags in rows if isinstance(tags, tuple) for name in tags)
    explicit = options.explicit or frozenset(map(plain, known))
    if unclassed := sorted(name for name in counts if name not in explicit and is_no_class(name)):
        options.note(f"tags {quoted(unclassed)} are taken as no tag: background is id 0 of every mask")
    for name in unclassed:
        del counts[name]
    note_none_classes(sorted(counts.keys() - explicit), options.note)
    listed = by_spelling(explicit)
    keys = {*map(spelling, counts), *listed}
    joined: re.Match[str] | None = None
    unlisted = [name for name in counts if name not in explicit and spelling(name) not in listed]
    for name in unlisted if options.separator is None else ():
        for separator in dict.fromkeys((" and ", *re.findall(r"[\W_]+", name))):
            parts = {spelling(part) for part in name.split(separator)}
            if spelling(name) not in parts and parts <= keys:
                raise DataError(
                    f"tag {shown(name)} is made of other tags: say --tags-separator {separator!r} if that "
                    "separates tags, or name all classes in --classes FILE if it is one"
                )
        joined = joined or re.search(r"\w\s*([+&/\\,;|])\s*\w", name)
    if joined and not explicit:
        cure = f"--tags-separator '{joined[1]}' parts them"
        options.note(f"tags such as {shown(joined.string)} are taken as one name; {cure}")
    return _renamed(rows, {name: name for name in counts} | _one_spelling(counts, explicit, options))


def _one_spelling(counts: Counter[str], explicit: Collection[str], options: SourceOptions) -> dict[str, str]:
    by_key = by_spelling(explicit)
    names: dict[str, str] = {}
    lines = []
    for key, group in by_spelling(name for name in sorted(counts) if name not in explicit).items():
        listed = by_key.get(key, [])
        if len(listed) > 1 or (not listed and len(group) < 2):
            continue
        best = listed[0] if listed else max(group, key=lambda name: (counts[name], name.isascii(), name))
        names |= dict.fromkeys(group, best)
        lines.append(f"{quoted([name for name in group if name != best])} as '{best}'")
    if lines:
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        said, cure = "; ".join(lines[:5]), "name them in --classes to keep them apart"
        options.note(f"tags that differ only in spelling are one class: {said}{more} ({cure})")
    return names


def is_numbering(column: str) -> bool:
    """Whether a column's name says that it numbers the rows."""
    return _NUMBERING.fullmatch(column.strip().casefold()) is not None


def columns_tags(columns: Mapping[str, Sequence[Any]], options: SourceOptions) -> tuple[list[Tags], Tags]:
    """Return the tags in each row of one or several columns, and the classes that columns of 0 and 1 name.

    Raises `DataError` as `column_tags`; or if some columns hold 0 and 1 and others do not, or several hold
    numbers only: of classes, or how often each column's class is there.
    """
    names = tuple(columns)
    if len(names) == 1:
        return column_tags(columns[names[0]], names[0], options), ()
    flags = flag_columns(columns)
    if any(flags.values()):
        if len(flags) < len(names):
            some = f"only {quoted(tuple(flags))} hold 0 and 1"
            raise DataError(f"of the columns {quoted(names)} {some}; name columns of one kind")
        options.note(f"columns {quoted(names)} hold 0 and 1: each is a class, shown where it is 1")
        classes = tuple(map(plain, names))
        rows = zip(*columns.values(), strict=True)
        return [tuple(compress(classes, (truth(c, ticks=True) for c in cells))) for cells in rows], classes
    read = [column_tags(cells, name, options, alone=False) for name, cells in columns.items()]
    found = {name for tags in chain(*read) if isinstance(tags, tuple) for name in tags}
    if found - options.explicit and all(map(_NUMBER.fullmatch, found)):
        cure = "write 1 where its class is there, or list the numbers in --classes if they are classes"
        raise DataError(f"columns {quoted(names)} hold numbers other than 0 and 1: {cure}")
    return [united(parts) for parts in zip(*read, strict=True)], ()


def flag_columns(columns: Mapping[str, Iterable[Any]]) -> dict[str, bool]:
    """Return those of the columns that hold only 0 and 1, -1, true, false or blanks, and if any is not."""
    flags = {}
    for name, cells in columns.items():
        try:
            flags[name] = bool({truth(cell, ticks=True) for cell in cells} - {None})
        except (LookupError, TypeError):
            continue
    return flags


def flags_found(
    columns: Mapping[str, Iterable[Any]], missing: str, options: SourceOptions
) -> tuple[str, ...]:
    """Return the columns of 0 and 1 that are the tags of a table without a column of tags.

    They are those that are classes; all of them where no classes are listed. Raises `DataError` with the text
    `missing` where some columns hold something else.
    """
    flags = [name for name, holds in flag_columns(columns).items() if holds]
    listed = by_spelling(options.explicit)
    if found := tuple(name for name in flags if spelling(name) in listed):
        return found
    rest = {name for name in columns if not is_numbering(name)}
    found = tuple(name for name in flags if name in rest)
    if not found or rest - set(flags):
        raise DataError(missing + (f" (of 0 and 1: {','.join(flags):.200})" if flags else ""))
    return found
