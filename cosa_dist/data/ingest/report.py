"""What an ingest tells: counts against known sizes, entries left out, pictures that occur twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from cosa_dist.data.errors import DataError, Rejection, quoted
from cosa_dist.data.ingest.masks import MaskSurvey

_SHOWN = 10
_CLASSES_SHOWN = 40
"""Most classes that are listed; of more, the first ten and the last five are."""
_LONGEST_NAME = 40


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
