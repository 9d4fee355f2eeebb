"""What an ingest reports: counts, entries left out, repeated pictures, classes, and how masks and tags fit.

Masks that can be no class masks (0 and 255 only, one value for all classes) are refused. Where tags and masks
contradict each other, the counts are given, with the tags that a mask value stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from cosa_dist.data.catalog import IGNORE, IGNORED
from cosa_dist.data.errors import DataError, Rejection, quoted
from cosa_dist.data.shards.writer import Trace

_SHOWN = 10
_CLASSES_SHOWN = 40
"""Most classes that are listed; of more, the first ten and the last five are."""
_LONGEST_NAME = 40
_MOST_NAMED = 5
"""Most classes that a line names."""
_SEVERAL = 2
"""So many masks that hold none of their picture's tags are no single mistake."""
_SAME = 0.8
"""Overlap (intersection over union) of the pictures with a tag and those with a mask value from which the
value stands for the tag."""


@dataclass
class MaskSurvey:
    """Counts over some records.

    Keys of `counts`: `records`, those `without tags`, `without mask` or `rotated`; `masks`, their `pixels`
    and `ignored` pixels, masks that hold a `value V`. Of pictures with a mask and tags of their own:
    `compared`, `tagged` (with any tag), `tag T`, `held V` and `both T V`; `drawn` (tagged, and the mask holds
    a class), `against` (drawn, but none of the tags), `without` (tagged, but none of the tags), `untagged` (a
    class that is no tag), `missing` (a tag that is not in the mask). `first` has the smallest place of each
    of the last four and of the rotated.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str | tuple[str | int, ...]) -> int:
        return self.counts[key if isinstance(key, str) else " ".join(map(str, key))]

    def add(self, record: Trace, place: str) -> None:
        """Count one record; `place` is its name in messages."""
        tags, values = set(record.labels), set(record.mask_values)
        self.counts.update({"records": 1, "without tags": int(not tags), "without mask": int(not values)})
        drawn = {value - 1 for value in values - {0, IGNORE}}
        cases = {"rotated": record.rotated}
        if values:
            self.counts.update(["masks", *(f"value {value}" for value in values)])
            self.counts.update(pixels=record.pixels, ignored=record.ignored)
        if values and record.own_tags:
            self.counts.update(["compared", *(f"tag {tag}" for tag in tags), *(f"held {v}" for v in values)])
            self.counts.update(f"both {tag} {value}" for tag in tags for value in values)
            self.counts.update(tagged=int(bool(tags)), drawn=int(bool(tags and drawn)))
            cases["against"] = bool(tags and drawn and not tags & drawn)
            cases["without"] = bool(tags and not tags & drawn)
            cases["untagged"] = bool(drawn - tags)
            cases["missing"] = bool(tags - drawn)
        for case in (case for case, true in cases.items() if true):
            self.counts[case] += 1
            self.first[case] = min(place, self.first.get(case, place))

    def overlap(self, tag: int, value: int) -> float:
        """Of the pictures with the tag or the value in the mask, the fraction that has both."""
        both = self["both", tag, value]
        return both / (self["tag", tag] + self["held", value] - both) if both else 0.0

    def classes_held(self, kind: str = "value") -> list[int]:
        """The values that stand for classes in any mask."""
        return [value for value in range(1, IGNORE) if self[kind, value]]


@dataclass(frozen=True)
class SplitReport:
    """What became of one split; `expected` is None where no size is known."""

    name: str
    count: int
    shards: int
    expected: int | None
    rejections: tuple[Rejection, ...]
    survey: MaskSurvey

    def line(self) -> str:
        """One line for the terminal."""
        bad = sum(not rejection.by_rule for rejection in self.rejections)
        parts = (
            (bad, "rejected"),
            (len(self.rejections) - bad, "left out for want of a tag"),
            (self.survey["without tags"], "without tags"),
            (self.survey["without mask"], "without mask"),
        )
        text = f"{self.name}: {self.count} records in {self.shards} shards"
        text += "".join(f", {number} {words}" for number, words in parts if number)
        if self.expected is not None and self.expected != self.count:
            text += f"; differs from the known size of {self.expected}"
        return text

    def rejection_lines(self) -> list[str]:
        """One line for each bad entry, up to ten, and how many more there are."""
        bad = [rejection for rejection in self.rejections if not rejection.by_rule]
        lines = [
            f"{self.name}: rejected {rejection.id!r}{rejection.file_note}: {rejection.reason}"
            for rejection in bad[:_SHOWN]
        ]
        if len(bad) > _SHOWN:
            lines.append(f"{self.name}: {len(bad) - _SHOWN} more rejected, all in rejected.json")
        return lines

    def rotation_lines(self) -> list[str]:
        """One line if pictures are to be shown rotated or mirrored."""
        if not self.survey["rotated"]:
            return []
        return [
            f"{self.name}: {self.survey['rotated']} pictures carry an EXIF rotation "
            f"(first: {self.survey.first['rotated']}); pixels are taken as they "
            "are stored, and masks must be drawn so"
        ]


def repeated_pictures(places: Iterable[Sequence[tuple[str, str]]]) -> list[Sequence[tuple[str, str]]]:
    """Of the (split, id) pairs of each picture, those that may be a mistake.

    The same id in two training lists is none (VOC's `train` lies within its `train_aug`); two ids, or one
    that is in a training and in another split, are.
    """
    return [
        group
        for group in places
        if len({name for _, name in group}) > 1 or len({split.startswith("train") for split, _ in group}) > 1
    ]


def repeated_lines(groups: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """One line for the terminal if pictures are repeated."""
    if not groups:
        return []
    examples = " and ".join(f"{split}/{record_id}" for split, record_id in groups[0][:2])
    return [
        f"{len(groups)} pictures occur more than once, such as {examples}; all are kept and listed in "
        "repeated.json: take what is not meant off the lists"
    ]


def class_lines(
    class_names: Sequence[str], counts: Mapping[str, Mapping[str, int]], survey: MaskSurvey
) -> list[str]:
    """A table of the classes: mask id, name, images tagged with it in each split.

    Where masks were compared with tags (`survey`, of all splits), a column counts the masks that hold the id.
    """
    compared = bool(survey["compared"])
    rows = [["id", "class", *counts, *(["masks with id"] if compared else [])]]
    for number, name in enumerate(class_names, start=1):
        masks = [str(survey["held", number])] if compared else []
        shown = name if cell_len(name) <= _LONGEST_NAME else f"{set_cell_size(name, _LONGEST_NAME - 3)}..."
        rows.append([str(number), shown, *(str(counted[name]) for counted in counts.values()), *masks])
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = set_cell_size(row[1], widths[1])
        lines.append("  ".join(cells))
    if len(class_names) > _CLASSES_SHOWN:
        lines[11:-5] = [f"... {len(class_names) - 15} more, all in dataset.json"]
    return lines


def refuse_too_many(split: str, total: int, bad: Sequence[Rejection], max_bad_fraction: float) -> None:
    """Raise `DataError` if more than the allowed fraction of a split's entries is bad, or all of them."""
    if bad and (len(bad) == total or len(bad) > max_bad_fraction * total):
        reason, often = Counter(rejection.reason for rejection in bad).most_common(1)[0]
        raise DataError(
            f"split '{split}': at least {len(bad)} of {total} records are bad, more than the allowed "
            f"{max_bad_fraction:.0%}; most often ({often}x): {reason} "
            f"(first: {bad[0].id}{bad[0].file_note}); mend them or allow more with --max-bad-fraction"
        )


def coverage_lines(
    class_names: Sequence[str],
    counts_by_split: Mapping[str, Mapping[str, int]],
    sizes_by_split: Mapping[str, int],
) -> list[str]:
    """Lines on classes that cannot be learned or localised, and on splits that training needs.

    Splits whose names begin with `train` are for training.
    """
    trained = [split for split in sizes_by_split if split.startswith("train")]
    others = [split for split in sizes_by_split if split not in trained]
    lines = []
    for split in trained:
        counts = counts_by_split[split]
        everywhere = [name for name in class_names if counts[name] == sizes_by_split[split]]
        absent = [name for name in class_names if not counts[name]]
        elsewhere = [name for name in absent if any(counts_by_split[other][name] for other in others)]
        nowhere = [name for name in absent if name not in elsewhere]
        if everywhere:
            only = "the only class and " if len(class_names) == 1 else ""
            lines.append(
                f"{split}: {only}on every picture: {quoted(everywhere, _SHOWN)}; what no picture lacks "
                "cannot be localised: add pictures without it (folder: background; table: no tag)"
            )
        if elsewhere:
            there = [other for other in others if any(counts_by_split[other][name] for name in elsewhere)]
            lines.append(
                f"{split}: no picture of {quoted(elsewhere, _SHOWN)}, only in {', '.join(there)}; what is "
                "not in training cannot be learned"
            )
        if nowhere:
            lines.append(
                f"{split}: no picture of {quoted(nowhere, _SHOWN)}, nor elsewhere; they cannot be learned"
            )
    if not trained:
        lines.append("no split 'train': nothing can be trained on this data set")
    elif "val" not in sizes_by_split:
        instead = f"--data.val_split {others[0]}, or " if others else ""
        lines.append(
            f"no split 'val', which training wants: {instead}ingest own data with --val-fraction 0.2 "
            "for such a fraction of train"
        )
    return lines


def mask_lines(
    total: MaskSurvey, by_split: Mapping[str, MaskSurvey], class_names: Sequence[str], classes_given: bool
) -> list[str]:
    """What is to be said of the masks of a data set, from the survey of all of it and of each split.

    Raises `DataError` if no mask holds a class, or one whose name means none, if all classes have one value,
    or if masks contradict the tags and the order of the classes was not given by the user.
    """
    if not total["masks"]:
        return []
    lines = _without_class(by_split, total, class_names) + _named_as_no_class(total, class_names)
    _refuse_one_value(total, class_names)
    percent = 100 * total["ignored"] / total["pixels"]
    ignored = f"{percent:.1f} % of their pixels are {IGNORE}, which is ignored"
    lines.append(f"masks: {ignored if total['ignored'] else f'no pixel is {IGNORE} (ignored)'}")
    if not total["value", 0]:
        lines.append("masks: none holds a 0, so there is no background to be judged")
    return lines + _comparison(total, class_names, classes_given)


def _without_class(
    by_split: Mapping[str, MaskSurvey], total: MaskSurvey, class_names: Sequence[str]
) -> list[str]:
    """A line on each split without a class in its masks; raises `DataError` if that is all of them."""
    write = f"write each class's id into them (1 for '{class_names[0]}'), 0 for background"
    if not total.classes_held():
        said = f"{_holding_no_class(total)}; {write}"
        if total["value", IGNORE] or total["tagged"]:
            raise DataError(said)
        return [f"WARNING: {said}"]
    return [
        f"WARNING: split '{name}': {_holding_no_class(survey)}; {write}"
        for name, survey in by_split.items()
        if survey["masks"] and not survey.classes_held()
    ]


def _named_as_no_class(total: MaskSurvey, class_names: Sequence[str]) -> list[str]:
    """A line on a class `void` that masks hold; raises `DataError` for a surer name."""
    lines = []
    for value, name in enumerate(class_names, start=1):
        word = name.strip("_ ").casefold()
        if not total["value", value] or word not in (*IGNORED, "void"):
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
    if not survey["value", 0]:
        return f"every pixel of every mask is {IGNORE}, which is ignored"
    if survey["value", IGNORE]:
        return f"the masks hold 0 and {IGNORE} only, and {IGNORE} is ignored"
    tagged = f", though {survey['tagged']} of their pictures are tagged" * bool(survey["tagged"])
    return f"every pixel of every mask is 0, which is background{tagged}"


def _refuse_one_value(total: MaskSurvey, class_names: Sequence[str]) -> None:
    """Raise `DataError` if all masks hold the same value while their pictures' tags differ."""
    held = total.classes_held("held")
    if len(held) != 1:
        return
    (value,) = held
    tags = [tag for tag in range(len(class_names)) if total["both", tag, value]]
    others = total["tagged"] - total["tag", value - 1]
    if len(tags) > 1 and total["against"] >= max(_SEVERAL, others / 2):
        raise DataError(
            f"the masks tell no classes apart: all hold the value {value} ('{class_names[value - 1]}'), also "
            f"{total['against']} whose pictures have other tags only (first: {total.first['against']}); "
            "write each class's id into them, or leave the masks out"
        )


def _comparison(total: MaskSurvey, class_names: Sequence[str], classes_given: bool) -> list[str]:
    """The counts of what masks and tags agree on; raises `DataError` if that is hardly anything."""
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
    """A line if masks contradict the tags; raises `DataError` if the classes' order was not the user's."""
    moved = _shifted(total, len(class_names))
    places = [
        f"value {value} stands on pictures tagged '{class_names[tag]}', which is id {tag + 1}"
        for tag, value in moved.items()
    ]
    places = places or [
        f"value {tag + 1} stands on no picture tagged '{name}'"
        for tag, name in enumerate(class_names)
        if min(total["tag", tag], total["held", tag + 1]) >= _SEVERAL and not total["both", tag, tag + 1]
    ]
    stand = ", ".join(places[:_MOST_NAMED])
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
    if classes_given or against < _SEVERAL:
        return [f"WARNING: {said}"]
    raise DataError(said)


def _shifted(total: MaskSurvey, num_foreground: int) -> dict[int, int]:
    """The tags that another mask value than their own stands for, with that value."""
    moved = {}
    for tag in range(num_foreground):
        if not total["tag", tag] or total.overlap(tag, tag + 1) >= _SAME / 2:
            continue
        overlaps = {value: total.overlap(tag, value) for value in (*range(1, IGNORE), 0)}
        value = max(overlaps, key=overlaps.__getitem__)
        if overlaps[value] >= _SAME and overlaps[value] > total.overlap(value - 1, value):
            moved[tag] = value
    return moved


def _by_class(counts: Counter[str]) -> str:
    """The classes with counts, most frequent first, as text that begins with a colon."""
    found = [f"{name} {count}" for name, count in counts.most_common() if count]
    text = ", ".join(found[:_MOST_NAMED])
    return f": {text}" + ", ..." * (len(found) > _MOST_NAMED)
