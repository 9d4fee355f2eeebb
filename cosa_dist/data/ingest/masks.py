"""What masks hold, compared with the pictures' tags: counted record by record, judged over the data set.

Masks that can be no class masks (0 and 255 only, one value for all classes) are refused. Where tags and
masks contradict each other, the counts are said, with the tags that a mask value stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cosa_dist.data.catalog import IGNORE, UNLABELED
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.check import CheckedRecord

Key = tuple[str | int, ...]
_NAMED = 5
"""Most classes that a line names."""
_ENOUGH = 2
"""So many masks that hold none of their picture's tags are no single mistake."""
_SAME = 0.8
"""Overlap (intersection over union) of the pictures with a tag and those with a mask value from which the
value stands for the tag."""
_IGNORED_NAMES = ("ignore", "ignored", "dontcare", *UNLABELED)


@dataclass
class MaskSurvey:
    """Counts over some records; those of several parts are added.

    Attributes:
        counts: by key. `masks`, their `pixels` and `ignored` pixels, masks that hold a `("value", v)`,
            and pictures with a rotation (`turned`). Of pictures with a mask and tags of their own:
            `compared`, `tagged` (with any tag), `("tag", t)`, `("held", v)` and `("both", t, v)`; `drawn`
            (tagged, and the mask holds a class), `against` (drawn, but none of the tags), `without`
            (tagged, but none of the tags), `untagged` (a class that is no tag), `missing` (a tag that
            is not in the mask).
        first: the id, smallest in order, of a picture for each of the last four and `turned`.
    """

    counts: Counter[Key] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str | Key) -> int:
        return self.counts[key if isinstance(key, tuple) else (key,)]

    def add(self, record: CheckedRecord) -> None:
        """Count one record."""
        if record.turned:
            self._note("turned", record.id)
        if record.mask is None:
            return
        values = set(record.mask_values)
        self.counts.update([("masks",), *(("value", value) for value in values)])
        self.counts["pixels",] += record.width * record.height
        self.counts["ignored",] += record.ignored
        if not record.own_tags:
            return
        tags, drawn = {*record.labels}, {value - 1 for value in values - {0, IGNORE}}
        self.counts.update([("compared",), *(("tag", tag) for tag in tags), *(("held", v) for v in values)])
        self.counts.update(("both", tag, value) for tag in tags for value in values)
        self.counts["tagged",] += bool(tags)
        self.counts["drawn",] += bool(tags and drawn)
        for kind, found in (
            ("against", tags and drawn and not tags & drawn),
            ("without", tags and not tags & drawn),
            ("untagged", drawn - tags),
            ("missing", tags - drawn),
        ):
            if found:
                self._note(kind, record.id)

    def as_row(self) -> dict[str, Any]:
        """Plain values that `merged` reads."""
        return {"counts": [[*key, count] for key, count in self.counts.items()], "first": self.first}

    def overlap(self, tag: int, value: int) -> float:
        """Of the pictures with the tag or the value in the mask, the share that has both."""
        both = self["both", tag, value]
        return both / (self["tag", tag] + self["held", value] - both) if both else 0.0

    def _note(self, kind: str, place: str, count: int = 1) -> None:
        self.counts[kind,] += count
        self.first[kind] = min(place, self.first.get(kind, place))


def merged(rows: Mapping[str, Mapping[str, Any]] | Iterable[Mapping[str, Any]]) -> MaskSurvey:
    """Add up what `as_row` gave; where the rows have names (of splits), `first` begins with them."""
    named = rows.items() if isinstance(rows, Mapping) else (("", row) for row in rows)
    total = MaskSurvey()
    for name, row in named:
        total.counts.update({tuple(key): count for *key, count in row.get("counts", ())})
        for kind, place in row.get("first", {}).items():
            total._note(kind, f"{name}/{place}" if name else place, 0)
    return total


def mask_lines(
    by_split: Mapping[str, MaskSurvey], class_names: Sequence[str], classes_given: bool
) -> list[str]:
    """Return what is to be said of the masks of a data set.

    Args:
        by_split: what was counted.
        class_names: the C foreground classes.
        classes_given: whether the user gave their order; if not, a contradiction is refused.

    Raises:
        DataError: no mask holds a class, or one whose name means none, all classes have one value, or
            masks contradict the tags.
    """
    total = merged({split: survey.as_row() for split, survey in by_split.items()})
    if not total["masks"]:
        return []
    lines = _without_class(by_split, total, class_names) + _no_classes(total, class_names)
    _refuse_one_value(total, class_names)
    share = 100 * total["ignored"] / total["pixels"]
    ignored = f"{share:.1f} % of their pixels are {IGNORE}, which is ignored"
    lines.append(f"masks: {ignored if total['ignored'] else f'no pixel is {IGNORE} (ignored)'}")
    if not total["value", 0]:
        lines.append("masks: none holds a 0, so there is no background to be judged")
    return lines + _comparison(total, class_names, classes_given)


def _without_class(
    by_split: Mapping[str, MaskSurvey], total: MaskSurvey, class_names: Sequence[str]
) -> list[str]:
    """Return a line on each split without a class in its masks; raises `DataError` if that is all of them."""
    write = f"write each class's id into them (1 for '{class_names[0]}'), 0 for background"
    if not _classes_held(total):
        said = f"{_holding_no_class(total)}; {write}"
        if total["value", IGNORE] or total["tagged"]:
            raise DataError(said)
        return [f"WARNING: {said}"]
    return [
        f"WARNING: split '{name}': {_holding_no_class(survey)}; {write}"
        for name, survey in by_split.items()
        if survey["masks"] and not _classes_held(survey)
    ]


def _no_classes(total: MaskSurvey, class_names: Sequence[str]) -> list[str]:
    """Return a line on a class `void` that masks hold; raises `DataError` for a surer name."""
    lines = []
    for value, name in enumerate(class_names, start=1):
        word = name.strip("_ ").casefold()
        if not total["value", value] or word not in (*_IGNORED_NAMES, "void"):
            continue
        said = (
            f"{total['value', value]} masks hold {value}, which is '{name}'; pixels without a class are "
            f"{IGNORE} (ignored) or 0 (background): write that and take the name off the classes, or "
            "call it background where the list begins with id 0"
        )
        if word != "void":
            raise DataError(said)
        lines.append(f"WARNING: {said} (if it is a class, all is well)")
    return lines


def _holding_no_class(survey: MaskSurvey) -> str:
    """Return in words what masks hold that hold no class."""
    if not survey["value", 0]:
        return f"every pixel of every mask is {IGNORE}, which is ignored"
    if survey["value", IGNORE]:
        return f"the masks hold 0 and {IGNORE} only, and {IGNORE} is ignored"
    tagged = f", though {survey['tagged']} of their pictures are tagged" * bool(survey["tagged"])
    return f"every pixel of every mask is 0, which is background{tagged}"


def _classes_held(survey: MaskSurvey, kind: str = "value") -> list[int]:
    """Return the values that stand for classes in any mask."""
    return [value for value in range(1, IGNORE) if survey[kind, value]]


def _refuse_one_value(total: MaskSurvey, class_names: Sequence[str]) -> None:
    """Raise `DataError` if all masks hold the same value while their pictures' tags differ."""
    held = _classes_held(total, "held")
    if len(held) != 1:
        return
    (value,) = held
    tags = [tag for tag in range(len(class_names)) if total["both", tag, value]]
    others = total["tagged"] - total["tag", value - 1]
    if len(tags) > 1 and total["against"] >= max(_ENOUGH, others / 2):
        raise DataError(
            f"the masks tell no classes apart: all hold the value {value} ('{class_names[value - 1]}'), also "
            f"{total['against']} whose pictures have other tags only (first: {total.first['against']}); "
            "write each class's id into them, or leave the masks out"
        )


def _comparison(total: MaskSurvey, class_names: Sequence[str], classes_given: bool) -> list[str]:
    """Return the counts of what masks and tags agree on, or raise `DataError` if hardly anything."""
    if not total["compared"]:
        return []
    if not total["without"] and not total["untagged"] and not total["missing"]:
        return [f"masks and tags agree on all {total['compared']} pictures that have both"]
    untagged, missing = Counter[str](), Counter[str]()
    for tag, name in enumerate(class_names):
        untagged[name] = total["held", tag + 1] - total["both", tag, tag + 1]
        missing[name] = total["tag", tag] - total["both", tag, tag + 1]
    lines = [
        f"masks and tags: {total[kind]} of {total['compared']} {words} (first: {total.first[kind]}){more}"
        for kind, words, more in (
            ("without", "masks hold no class of their picture's tags", ""),
            ("untagged", "masks hold a class that is no tag of their picture", _by_class(untagged)),
            ("missing", "pictures have a tag that is not in their mask", _by_class(missing)),
        )
        if total[kind]
    ]
    return lines + _contradiction(total, class_names, classes_given)


def _contradiction(total: MaskSurvey, class_names: Sequence[str], classes_given: bool) -> list[str]:
    """Return a line if masks contradict the tags; raises `DataError` if the classes' order was no user's."""
    moved = _moved(total, len(class_names))
    places = [
        f"value {value} stands on pictures tagged '{class_names[tag]}', which is id {tag + 1}"
        for tag, value in moved.items()
    ]
    places = places or [
        f"value {tag + 1} stands on no picture tagged '{name}'"
        for tag, name in enumerate(class_names)
        if _apart(total, tag)
    ]
    stand = ", ".join(places[:_NAMED])
    cure = "give the class names in the order of the masks' ids with --classes FILE, or mend the masks"
    shifts = {value - tag - 1 for tag, value in moved.items()}
    if len(moved) > 1 and len(shifts) == 1:
        shift = shifts.pop()
        which, change = (f"{shift} too high", "subtract {}") if shift > 0 else (f"{-shift} too low", "add {}")
        stand += f": ids are {which}, for 0 is background and 1 the first class"
        cure = f"{change.format(abs(shift))} in the masks (not to 255), or {cure}"
    against, drawn = total["against"], total["drawn"]
    if against <= drawn / 2 and not (stand and against >= max(1, drawn / 10)):
        return [f"WARNING: masks and tags: {stand}; {cure}"] if stand else []
    said = (
        f"masks and tags contradict each other: {against} of {drawn} masks with a class hold none of "
        f"their picture's tags (first: {total.first['against']})"
    )
    said += f"; {stand}" * bool(stand)
    said += f"; {cure}"
    if classes_given or against < _ENOUGH:
        return [f"WARNING: {said}"]
    raise DataError(said)


def _moved(total: MaskSurvey, num_foreground: int) -> dict[int, int]:
    """Return the tags that another mask value than their own stands for, with that value."""
    moved = {}
    for tag in range(num_foreground):
        if not total["tag", tag] or total.overlap(tag, tag + 1) >= _SAME / 2:
            continue
        overlaps = {value: total.overlap(tag, value) for value in (*range(1, IGNORE), 0)}
        value = max(overlaps, key=overlaps.__getitem__)
        if overlaps[value] >= _SAME and overlaps[value] > total.overlap(value - 1, value):
            moved[tag] = value
    return moved


def _apart(total: MaskSurvey, tag: int) -> bool:
    """Whether a tag and its own value stand on several pictures each, and on none together."""
    several = min(total["tag", tag], total["held", tag + 1]) >= _ENOUGH
    return several and not total["both", tag, tag + 1]


def _by_class(counts: Counter[str]) -> str:
    """Return the classes with counts, most frequent first, as text that begins with a colon."""
    found = [f"{name} {count}" for name, count in counts.most_common() if count]
    text = ", ".join(found[:_NAMED])
    return f": {text}" + ", ..." * (len(found) > _NAMED)
