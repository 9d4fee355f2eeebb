"""Tags as people write them: columns of a table become names of classes.

What one cell leaves open is decided by its column, what a column leaves open by all names of the data set.
Names that the user lists in `--classes` are always meant as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, compress
from typing import Any

from cosa_dist.data.catalog import is_no_class
from cosa_dist.data.errors import DataError, quoted
from cosa_dist.data.sources.cells import MISSING, NUMBER, Tags, cell_words, shown, text_of, truth
from cosa_dist.data.sources.classes import note_none_classes
from cosa_dist.data.sources.options import SourceOptions, plain

TAG_COLUMNS = ("tags", "labels", "tag", "label", "classes", "class")
_DECIMAL = re.compile(r"-?\d*\.?\d+(?:e-?\d+)?|\d+\.", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"-?\d+,0+")
_NUMBERING = re.compile(r"unnamed: \d+|__index_level_\d+__|index|id|image_id")


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
    """Return the tags in each cell of a column.

    `alone`: the tags are in no other column, so that one of 0 and 1 has to name its class. Raises `DataError`
    if two readings are possible; the message names the option that decides.
    """
    texts = [text for cell in cells if (text := text_of(cell)).casefold() not in MISSING]
    decimals = all(_DECIMAL_COMMA.fullmatch(text) and text not in options.explicit for text in texts)
    if texts and decimals and options.separator is None:
        said = f"column '{column}' holds only numbers such as {texts[0]}: write them without a decimal comma"
        raise DataError(f"{said}, or say --tags-separator ',' if they are lists")
    examples: dict[str, str] = {}
    words_of_text = cache(lambda text: cell_words(text, options, examples))
    rows = [words_of_text(c) if isinstance(c, str) else cell_words(c, options, examples) for c in cells]
    for kind, example in examples.items():
        options.note(f"column '{column}': cells such as {example!r:.60} are read as {kind}")
    return _Column(column, rows, options).tags(alone)


@dataclass(frozen=True)
class _Column:
    """A column's words and numbers: names, class numbers, label vectors, or flags of one class."""

    name: str
    rows: Sequence[Tags]
    options: SourceOptions

    def tags(self, alone: bool) -> list[Tags]:
        """Return the tags, by the one reading that is possible."""
        lists = [row for row in self.rows if isinstance(row, tuple) and row]
        lengths = sorted(set(map(len, lists)))
        repeated = any(len(set(row)) < len(row) for row in lists)
        values, found = set(chain(*lists)), None
        try:
            truths = {value: truth(value) for value in values}
        except LookupError:
            unlisted = len(lengths) == 1 and repeated and not values <= self.options.explicit
            if unlisted and all(map(NUMBER.fullmatch, values)):
                cure = "write label vectors with 0 and 1, or each class number once"
                raise self._error(
                    f"{lengths[0]} numbers in every cell, some of them repeated: {cure}"
                ) from None
            truths = {}
        if set(truths.values()) - {None} and lengths[-1] > 1:
            found = self._vectors(lengths, repeated, truths)
        elif set(truths.values()) - {None} and alone:
            found = self._flags(truths)
        return self._named(values) if found is None else found

    def _error(self, said: str) -> DataError:
        return DataError(f"column '{self.name}' holds {said}")

    def _note(self, said: str) -> None:
        self.options.note(f"column '{self.name}'{said}")

    def _vectors(
        self, lengths: Sequence[int], repeated: bool, truths: Mapping[str, bool | None]
    ) -> list[Tags] | None:
        """Return the tags if the column holds label vectors, whose places are the classes; None if not."""
        classes, explicit = self.options.classes or (), self.options.explicit
        if len(lengths) > 1:
            if any(v.startswith("-") or v.casefold() in ("true", "false", "yes", "no") for v in truths):
                raise self._error(
                    f"label vectors of {lengths[0]} and of {lengths[-1]} places; make them equal"
                )
            if repeated:
                self._note(": lists of 0 and 1 of several lengths are taken as class numbers")
            return None
        if truths.keys() <= explicit and not (repeated and lengths[0] == len(explicit)):
            return None
        if len(classes) != lengths[0]:
            given = f" (it names {len(classes)})" if classes else ""
            raise self._error(
                f"label vectors of {lengths[0]} places: name the class of each, in their order, with "
                f"--classes FILE{given}"
            )
        self._note(" holds label vectors: place by place the classes of --classes")
        names = tuple(map(plain, classes))
        return [r if isinstance(r, str) else tuple(compress(names, map(truths.get, r))) for r in self.rows]

    def _flags(self, truths: Mapping[str, bool | None]) -> list[Tags] | None:
        """Return the tags if the column says of one class whether it is there; None if it holds names."""
        if truths.keys() <= self.options.explicit:
            return None
        usual = self.name.strip().casefold() in TAG_COLUMNS
        numbers = all(NUMBER.fullmatch(value) for value, said in truths.items() if said is not None)
        name = plain(self.name)
        if classes := self.options.classes:
            alike = by_spelling(classes).get(spelling(self.name), ()) if len(classes) > 1 else classes
            if len(alike) != 1:
                return None
            name = plain(alike[0])
        elif numbers and usual:
            if set(truths.values()) >= {True, False}:
                cure = "if 1 means that one class is there, name that one in --classes"
                self._note(f" holds 0 and 1: they are taken as two classes; {cure}")
            return None
        elif numbers or usual:
            raise self._error(
                f"only {quoted(sorted(truths))}: with --classes FILE name the one class that is there or "
                "not, or these if they are classes"
            )
        self._note(f" says whether '{name}' is there")
        return [row if isinstance(row, str) else (name,) * any(map(truths.get, row)) for row in self.rows]

    def _named(self, values: set[str]) -> list[Tags]:
        """Return names, or numbers of which `1.0` is 1; `nan` and its like are no tag."""
        rest = values - self.options.explicit
        missing = {value for value in rest if value.casefold() in MISSING}
        rest -= missing
        odd = sorted(value for value in rest if not NUMBER.fullmatch(value))
        if odd and all(map(_DECIMAL.fullmatch, rest)):
            cure = "write names or whole numbers, or list them in --classes if they are classes"
            raise self._error(f"numbers such as {odd[0]}, which name no classes; {cure}")
        numbers = all(map(is_no_class, odd))
        missing |= {value for value in rest if numbers and value.startswith("-")}
        names = {value: value for value in values & self.options.explicit}
        names |= {value: value.split(".")[0] if numbers else value for value in rest - missing}
        if said := sorted(missing - {""}):
            self._note(f": taken as no tag: {quoted(said)} (name in --classes what is a class)")
        return _renamed(self.rows, names)


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

    `known` are classes as they are where the user listed none.
    """
    counts = Counter(name for tags in rows if isinstance(tags, tuple) for name in tags)
    explicit = options.explicit or frozenset(map(plain, known))
    if unclassed := sorted(name for name in counts if name not in explicit and is_no_class(name)):
        options.note(f"tags {quoted(unclassed)} are taken as no tag: background is id 0 of every mask")
    for name in unclassed:
        del counts[name]
    note_none_classes(sorted(counts.keys() - explicit), options.note)
    if options.separator is None:
        _refuse_joined(counts, explicit, options)
    return _renamed(rows, {name: name for name in counts} | _one_spelling(counts, explicit, options))


def _refuse_joined(names: Collection[str], explicit: Collection[str], options: SourceOptions) -> None:
    """Raise `DataError` for a tag made of other tags and a separator; note signs that may be one."""
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
        sign = re.search(r"\w\s*([+&/\\,;|])\s*\w", name) or (name in mixed and re.search("( )", name))
        doubtful = doubtful or (sign and not explicit and (name, sign[1]))
    if doubtful:
        name, sign_text = doubtful
        cure = f"--tags-separator '{sign_text}' parts them"
        options.note(f"tags such as {shown(name)} are taken as one name; {cure}")


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
    if found - options.explicit and all(map(NUMBER.fullmatch, found)):
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
