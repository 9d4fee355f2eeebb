"""Tags as people write them: cells of a column become names of classes.

A cell is a name, a number, a list, the text of a list, or a label vector of 0 and 1. What one cell
leaves open is decided by its column, what a column leaves open by all names of the data set. Names that
the user lists in `--classes` are always meant as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from cosa_dist.data.catalog import UNLABELED, is_background
from cosa_dist.data.errors import DataError, RecordError, quoted
from cosa_dist.data.sources.cell import MISSING, NUMBER, TagRules, cell_words, shown, text_of, truth
from cosa_dist.data.sources.classes import plain, tell_of_none

Tags = tuple[str, ...] | str
"""The tags of a row; a text says why they cannot be read."""

TAG_COLUMNS = ("tags", "labels", "tag", "label", "classes", "class")
_DECIMAL = re.compile(r"-?\d*\.?\d+(?:e-?\d+)?|\d+\.", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"-?\d+,0+")


def united(rows: Iterable[Tags]) -> Tags:
    """Return the tags of several rows or columns together; of one that cannot be read the reason."""
    names: dict[str, None] = {}
    for tags in rows:
        if isinstance(tags, str):
            return tags
        names.update(dict.fromkeys(tags))
    return tuple(names)


def column_tags(cells: Sequence[Any], column: str, rules: TagRules, *, alone: bool = True) -> list[Tags]:
    """Return the tags in each cell of a column.

    Args:
        cells: names, numbers, lists of them, text of lists, or label vectors.
        column: its name.
        rules: what the user said.
        alone: whether the tags are in no other column, so that one of 0 and 1 has to name its class.

    Raises:
        DataError: two readings are possible; the message names the option that decides.
    """
    _refuse_decimal_commas(cells, column, rules)
    examples: dict[str, str] = {}
    known: dict[str, Tags] = {}
    rows: list[Tags] = []
    for cell in cells:
        read = known.get(cell) if isinstance(cell, str) else None
        if read is None:
            try:
                read = cell_words(cell, rules, examples)
            except RecordError as error:
                read = str(error)
        if isinstance(cell, str):
            known[cell] = read
        rows.append(read)
    for kind, example in examples.items():
        rules.tell(f"column '{column}': cells such as {example!r:.60} are read as {kind}")
    for read_as in (_vectors, _flags) if alone else (_vectors,):
        if (found := read_as(rows, column, rules)) is not None:
            return found
    return _named(rows, column, rules)


def settled(rows: Sequence[Tags], rules: TagRules, known: Iterable[str] = ()) -> list[Tags]:
    """Return the tags of all rows of a data set with one spelling for each class, without background.

    Args:
        rows: of all splits.
        rules: what the user said.
        known: names that are classes as they are, where there is no list of classes.

    Raises:
        DataError: some tags are other tags joined by a separator that nobody named.
    """
    counts = Counter(name for tags in rows if isinstance(tags, tuple) for name in tags)
    explicit = rules.explicit or frozenset(map(plain, known))
    unclassed = sorted(name for name in counts if name not in explicit and no_class(name))
    if unclassed:
        rules.tell(f"tags {quoted(unclassed)} are taken as no tag: background is id 0 of every mask")
    counts = Counter({name: number for name, number in counts.items() if name not in unclassed})
    tell_of_none(sorted(counts.keys() - explicit), rules.tell)
    if rules.separator is None:
        _refuse_joined(counts, explicit, rules)
    return _renamed(rows, {name: name for name in counts} | _one_spelling(counts, explicit, rules))


def _renamed(rows: Sequence[Tags], names: Mapping[str, str]) -> list[Tags]:
    """Return the rows by other names, each once, without those that have none; equal rows are one object."""
    made: dict[Tags, Tags] = {
        tags: tags if isinstance(tags, str) else tuple(dict.fromkeys(names[n] for n in tags if n in names))
        for tags in set(rows)
    }
    return [made[tags] for tags in rows]


def no_class(name: str) -> bool:
    """Whether a name of a class or a column stands for pixels or pictures without a class."""
    return is_background(name) or name.strip().casefold() in UNLABELED


def spelling(name: str) -> str:
    """Return what names that differ only in case, blanks, `_` and `-` have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    folded = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", folded).strip()


def by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names grouped by what `spelling` makes of them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(spelling(name), []).append(name)
    return groups


def _vectors(rows: Sequence[Tags], column: str, rules: TagRules) -> list[Tags] | None:
    """Return the tags if the column holds label vectors, whose places are the classes; None if not."""
    lists = [items for items in rows if isinstance(items, tuple) and items]
    lengths = sorted({len(items) for items in lists})
    if not lengths or lengths[-1] < 2:
        return None
    values = {value for items in lists for value in items}
    repeated = any(len(set(items)) < len(items) for items in lists)
    try:
        truths = {value: truth(value) for value in values}
    except ValueError:
        if len(lengths) == 1 and repeated and all(map(NUMBER.fullmatch, values)) and values - rules.explicit:
            raise DataError(
                f"column '{column}' holds {lengths[0]} numbers in every cell, some of them repeated: write "
                "label vectors with 0 and 1, or each class number once"
            ) from None
        return None
    if set(truths.values()) == {None}:
        return None
    words = {value.casefold() for value in values}
    surely = bool(words & {"true", "false", "yes", "no"} or any(word.startswith("-") for word in words))
    if len(lengths) > 1:
        if surely:
            raise DataError(
                f"column '{column}' holds label vectors of {lengths[0]} and of {lengths[-1]} places"
            )
        if repeated:
            rules.tell(f"column '{column}': lists of 0 and 1 of several lengths are taken as class numbers")
        return None
    if values <= rules.explicit and not (repeated and lengths[0] == len(rules.explicit)):
        return None
    if rules.classes is None or len(rules.classes) != lengths[0]:
        given = "" if rules.classes is None else f" (it names {len(rules.classes)})"
        raise DataError(
            f"column '{column}' holds label vectors of {lengths[0]} places: name the class of each, in their "
            f"order, with --classes FILE{given}"
        )
    rules.tell(f"column '{column}' holds label vectors: place by place the classes of --classes")
    names = tuple(map(plain, rules.classes))
    return [
        items if isinstance(items, str)
        else tuple(name for name, value in zip(names, items, strict=False) if truths[value])
        for items in rows
    ]  # fmt: skip


def _flags(rows: Sequence[Tags], column: str, rules: TagRules) -> list[Tags] | None:
    """Return the tags if the column says of one class whether it is there; None if it holds names."""
    values = {value for items in rows if isinstance(items, tuple) for value in items}
    if any(isinstance(items, tuple) and len(items) > 1 for items in rows) or values <= rules.explicit:
        return None
    try:
        truths = {value: truth(value) for value in values}
    except ValueError:
        return None
    if set(truths.values()) <= {None}:
        return None
    usual = column.strip().casefold() in TAG_COLUMNS
    numbers = all(map(NUMBER.fullmatch, (value for value in values if truths[value] is not None)))
    if rules.classes is not None:
        same = (
            rules.classes
            if len(rules.classes) == 1
            else by_spelling(rules.explicit).get(spelling(column), ())
        )
        if len(same) != 1:
            return None
        name = plain(same[0])
    elif numbers and usual:
        if set(truths.values()) >= {True, False}:
            rules.tell(
                f"column '{column}' holds 0 and 1: they are taken as two classes; if 1 means that one class "
                "is there, name that one in --classes"
            )
        return None
    elif numbers or usual:
        raise DataError(
            f"column '{column}' holds only {quoted(sorted(values))}: with --classes FILE name the one class "
            "that is there or not, or these themselves if they are classes"
        )
    else:
        name = plain(column)
    rules.tell(f"column '{column}' says whether '{name}' is there")
    return [
        items if isinstance(items, str) else (name,) if any(truths[item] for item in items) else ()
        for items in rows
    ]


def _named(rows: Sequence[Tags], column: str, rules: TagRules) -> list[Tags]:
    """Return the tags of a column of names or numbers: `1.0` is 1, and `nan` and its like are no tag."""
    values = {value for items in rows if isinstance(items, tuple) for value in items}
    names: dict[str, str] = {value: value for value in values if value in rules.explicit}
    missing = {value for value in values - rules.explicit if value.casefold() in MISSING}
    rest = values - missing - names.keys()
    odd = sorted(value for value in rest if not NUMBER.fullmatch(value))
    if odd and all(map(_DECIMAL.fullmatch, rest)):
        raise DataError(
            f"column '{column}' holds numbers such as {odd[0]}, which name no classes; write names or whole "
            "numbers, or list them in --classes if they are classes"
        )
    if all(NUMBER.fullmatch(value) for value in rest if not no_class(value)):
        missing |= {value for value in rest if value.startswith("-")}
        names |= {value: value.split(".")[0] for value in rest - missing}
    else:
        names |= {value: value for value in rest}
    if said := sorted(missing - {""}):
        rules.tell(f"column '{column}': taken as no tag: {quoted(said)} (name in --classes what is a class)")
    return _renamed(rows, names)


def _refuse_decimal_commas(cells: Iterable[Any], column: str, rules: TagRules) -> None:
    """Raise `DataError` if all of a column is text like `1,0`: a number, or the list of 1 and 0."""
    words = (word for cell in cells if (word := text_of(cell)).casefold() not in MISSING)
    if rules.separator is None and (first := next(words, "")):
        if not all(
            _DECIMAL_COMMA.fullmatch(word) and word not in rules.explicit for word in chain([first], words)
        ):
            return
        raise DataError(
            f"column '{column}' holds only numbers such as {first}: write them without a decimal comma, or "
            "say --tags-separator ',' if they are lists"
        )


def _refuse_joined(names: Iterable[str], explicit: Collection[str], rules: TagRules) -> None:
    """Raise `DataError` for a tag made of other tags and a separator; tell of signs that may be one."""
    listed = by_spelling(explicit)
    keys = {*map(spelling, names), *listed}
    doubtful, mixed = None, _of_shared_words(names)
    for name in sorted(set(names) - set(explicit)):
        if spelling(name) in listed:
            continue
        for separator in dict.fromkeys((" and ", *re.findall(r"[\W_]+", name))):
            parts = [spelling(part) for part in name.split(separator)]
            if len(parts) > 1 and all(part in keys and part != spelling(name) for part in parts):
                raise DataError(
                    f"tag {shown(name)} is made of other tags: say --tags-separator {separator!r} if that "
                    "separates tags, or name all classes in --classes FILE if it is one"
                )
        sign = re.search(r"\w\s*([+&/\\,;|])\s*\w", name) or (
            re.search("( )", name) if name in mixed else None
        )
        if doubtful is None and not explicit and sign:
            doubtful = (name, sign[1])
    if doubtful:
        name, sign_text = doubtful
        rules.tell(
            f"tags such as {shown(name)} are taken as one name; --tags-separator '{sign_text}' parts them"
        )


def _of_shared_words(names: Iterable[str]) -> set[str]:
    """Return the names of several words that hold another name of two words, or two of one: likely lists."""
    words = {name: parts for name in names if len(parts := name.split()) < 10}
    pairs = {frozenset(parts) for parts in words.values() if len(parts) == 2}
    return {
        name
        for name, parts in words.items()
        if len(parts) > 2
        and (
            sum(part in words for part in parts) > 1
            or any(frozenset(pair) in pairs for pair in combinations(parts, 2))
        )
    }


def _one_spelling(counts: Counter[str], explicit: Collection[str], rules: TagRules) -> dict[str, str]:
    """Return the class of each name that is spelt otherwise: the listed one, or the most frequent."""
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
        rules.tell(
            f"tags that differ only in spelling are one class: {'; '.join(lines[:5])}{more} "
            "(name them in --classes to keep them apart)"
        )
    return names
