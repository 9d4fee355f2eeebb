"""Two networks, or two sides of several seeds each, on the same images: how far apart, and how sure that is.

Both sides are scored on the same resamples of the images (`cosa_dist/evaluation/intervals.py`), so what makes
an image hard for both cancels in their difference, whose interval is narrower than the two scores' suggest.
The intervals are over images. What another seed would give is a second source of spread, which only several
runs show: their standard deviation stands beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import CrfConfig, EvaluationConfig
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.evaluation.intervals import (
    LEVEL,
    LEVEL_TEXT,
    RESAMPLES,
    SEED,
    Floats,
    ImageCounts,
    Interval,
    interval_of,
    interval_text,
    iou_of,
    miou_of,
    rare_classes,
    resampled,
    too_few_images,
)
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.reports.leaderboard import NETWORKS
from cosa_dist.reports.leaderboard_views import Cells

SETTINGS = {
    "": ("words",),
    "cam": ("cam_background",),
    "aux_cam": ("aux_cam_last_scale_only",),
    "crf": ("crf",),
}
"""settings that a score depends on, by what its measurement's name has in it"""


@dataclass(frozen=True)
class Figure:
    """A number in per cent and its interval over the images; None where there is none."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Side:
    """Runs that are one side of a comparison, by seed or a single one."""

    runs: tuple[str, ...]
    networks: tuple[str, ...]  # the one of each run
    scores: tuple[Figure, ...]  # of each run
    mean: Figure
    standard_deviation: float | None  # over the runs, with n - 1; None for a single one


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same images; `difference` is the second one's mean score minus the first one's."""

    measurement: str
    images: int
    benchmark: str
    image_set: str
    sides: tuple[Side, Side]
    difference: Figure
    classes: Mapping[str, tuple[Figure, Figure, Figure]]
    """mean IoU of the first side, of the second, and their difference, of classes that occur in the masks"""
    rare: tuple[str, ...]
    """classes in too few images: they have no interval, nor has any mIoU"""


@dataclass(frozen=True)
class Evaluated:
    """A run's report and its images' counts under one measurement, `[N, 3, K]`."""

    run: str
    report: EvalReport
    ids: tuple[str, ...]
    table: NDArray[np.int64]


def scored_report(
    run: Path, measurement: str = "unfiltered", network: str = "", split: str = ""
) -> EvalReport:
    """The report of a run's network with the higher score, or of `network`, from the end of its training.

    `scores[measurement]` has `miou` and `interval`. With `split` it is the report that jobs/evaluate.py left
    of that split. Raises ConfigError if there is none or it has no such score, ValueError if it is damaged.
    """
    files = RunFolder(run)
    asked = [network] if network else list(NETWORKS)
    paths = [path for name in asked if (path := files.report_file(name, split)).is_file()]
    if not paths:
        missing = files.report_file(network or "NETWORK", split)
        raise ConfigError(f"{missing} is missing: give a run folder that was evaluated (jobs/evaluate.py)")
    reports = [EvalReport.read(path) for path in paths]
    scores = {
        place: score.miou
        for place, report in enumerate(reports)
        if (score := report.scores.get(measurement)) is not None and score.miou is not None
    }
    if not scores:
        known = ", ".join(name for name, score in reports[0].scores.items() if score.miou is not None)
        raise ConfigError(f"{paths[0]} has no mIoU {measurement!r}; it has {known or 'none'}")
    return reports[max(scores, key=lambda place: scores[place])]


def read_evaluated(run: Path, measurement: str, network: str = "", split: str = "") -> Evaluated:
    """A run's scored report (see `scored_report`) with its counts.

    Raises ConfigError if it has none, or those of another evaluation; ValueError if they are damaged.
    """
    report = scored_report(run, measurement, network, split)
    path = RunFolder(run).counts_file(report.network, split)
    again = f"run jobs/evaluate.py {run}, and compare with --split SPLIT"
    if not path.is_file():
        raise ConfigError(f"{path} is missing, as for a run of an earlier version: {again}")
    counts = ImageCounts.load(path)
    table = counts.table(measurement)
    score = report.scores[measurement].miou or 0.0
    if not math.isclose(100.0 * float(miou_of(table.sum(0))), score, abs_tol=1e-6):
        raise ConfigError(f"{path} is of another evaluation than the report beside it: {again}")
    return Evaluated(str(run), report, counts.ids, table)


def refuse_unlike(one: Evaluated, other: Evaluated, measurement: str) -> None:
    """Raise ConfigError for two networks of other images or classes, or that were evaluated otherwise."""
    between = f"{one.run} and {other.run} cannot be compared"
    if one.report.class_names != other.report.class_names:
        classes = [", ".join(each.report.class_names)[:200] for each in (one, other)]
        raise ConfigError(f"{between}: they have other classes ({classes[0]} and {classes[1]})")
    if one.ids != other.ids:
        shared = len(set(one.ids) & set(other.ids))
        raise ConfigError(
            f"{between}: they were evaluated on other images ({len(one.ids)} and {len(other.ids)}, of which "
            f"{shared} are the same); run jobs/evaluate.py on one split, and compare with --split SPLIT"
        )
    if not np.array_equal(one.table[:, 0], other.table[:, 0]):
        raise ConfigError(f"{between}: their images have other true masks")
    for part, names in SETTINGS.items():
        for name in names if part in measurement else ():
            values = [_setting(each.report.settings, name) for each in (one, other)]
            if values[0] != values[1]:
                what = "seen" if name == "words" else name
                raise ConfigError(
                    f"{between}: they were evaluated with other settings ({what}: {values[0]}, and "
                    f"{values[1]}); run jobs/evaluate.py with the same"
                )


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    """A setting of a report: its words are those of its details, as an earlier version's left some out."""
    details = {key: value for key, value in settings.items() if key in EvaluationConfig.model_fields}
    if name == "words" and "scales" in details:
        return EvaluationConfig.model_validate({**details, "crf": CrfConfig()}).words
    value = settings.get(name)
    if name == "aux_cam_last_scale_only" and value and "scales" in details:
        return f"scale {details['scales'][-1]:g}"
    return value


def compare(
    first: Sequence[Path],
    second: Sequence[Path],
    measurement: str = "unfiltered",
    network: str = "",
    split: str = "",
) -> Comparison:
    """Compare two sides of one or several runs each, under one measurement (a protocol, or a CAM's).

    Raises ConfigError for runs that cannot be compared, with the reason; ValueError for damaged files.
    """
    sides = [[read_evaluated(run, measurement, network, split) for run in side] for side in (first, second)]
    one = sides[0][0]
    for each in (*sides[0], *sides[1]):
        refuse_unlike(one, each, measurement)
    scores = [[_scores(each.table) for each in side] for side in sides]
    means = [np.mean(side, axis=0) for side in scores]
    ones, twos, apart = ([_figure(column) for column in values.T] for values in (*means, means[1] - means[0]))
    names = ("background", *one.report.class_names)
    present = np.flatnonzero(one.table[:, 0].sum(0))
    return Comparison(
        measurement,
        len(one.ids),
        one.report.benchmark,
        one.report.image_set,
        (_side(sides[0], scores[0], ones[0]), _side(sides[1], scores[1], twos[0])),
        apart[0],
        {names[k]: (ones[k + 1], twos[k + 1], apart[k + 1]) for k in present},
        tuple(names[k] for k in rare_classes(one.table)),
    )


def _scores(table: NDArray[np.int64]) -> Floats:
    """The mIoU and the IoU by class in per cent, `[1 + R, 1 + K]`: of all images, then of the R resamples.

    `table` is `[N, 3, K]`. A class that is not in the truth has no IoU (NaN), and one in too few images has
    none of any resample, nor is there an mIoU of one then.
    """
    sums = np.concatenate([table.sum(0)[None], *resampled(table)])
    iou = np.where(sums[:, 0] > 0, iou_of(sums), np.nan)
    scores = 100.0 * np.concatenate([miou_of(sums)[:, None], iou], axis=1)
    if rare := rare_classes(table):
        scores[1:, [0, *(k + 1 for k in rare)]] = np.nan
    return scores


def _figure(scores: Floats) -> Figure:
    """Of `[1 + R]` scores, the first of which is that of all images."""
    return Figure(None if np.isnan(scores[0]) else float(scores[0]), interval_of(scores[1:]))


def _side(runs: Sequence[Evaluated], scores: Sequence[Floats], whole: Figure) -> Side:
    mious = [values[:, 0] for values in scores]
    return Side(
        tuple(each.run for each in runs),
        tuple(each.report.network for each in runs),
        tuple(map(_figure, mious)),
        whole,
        stdev(float(values[0]) for values in mious) if len(mious) > 1 else None,
    )


def comparison_json(found: Comparison) -> str:
    """The comparison as JSON, with how its intervals were made."""
    how = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "over": "images"}
    content: dict[str, Any] = asdict(found)
    return json.dumps(content | {"intervals": how}, indent=1) + "\n"


def comparison_cells(found: Comparison) -> list[Cells]:
    """The comparison as two tables: the sides with their difference, and the classes."""
    rows = []
    for name, side in zip(("first", "second"), found.sides, strict=True):
        for run, network, score in zip(side.runs, side.networks, side.scores, strict=True):
            rows.append([name, Path(run).name, network, *_shown(score)])
        if side.standard_deviation is not None:
            what = f"mean of {len(side.runs)} runs, SD {side.standard_deviation:.1f}"
            rows.append([name, what, "", *_shown(side.mean)])
    rows.append(["second - first", "", "", *_shown(found.difference, "+z.1f")])
    images = f"{found.benchmark or f'set {found.image_set[:8]}'}, {found.images:,} images"
    header = ["side", "run", "network", "mIoU", LEVEL_TEXT]
    classes = [
        [name, _shown(one)[0], _shown(two)[0], *_shown(difference, "+z.1f")]
        for name, (one, two, difference) in found.classes.items()
    ]
    return [
        Cells(f"{found.measurement} mIoU ({images})", header, rows),
        Cells("IoU per class", ["class", "first", "second", "second - first", LEVEL_TEXT], classes),
    ]


def _shown(figure: Figure, form: str = ".1f") -> list[str]:
    value = "-" if figure.value is None else f"{figure.value:{form}}"
    return [value, interval_text(figure.interval, form)]


def reading(found: Comparison) -> str:
    """What the intervals hold, and what they do not."""
    ends = found.difference.interval
    reason = too_few_images(found.rare)
    none = "does not exist" + f": {reason}" * bool(reason)
    holds = none if ends is None else "holds 0" if ends[0] <= 0 <= ends[1] else "does not hold 0"
    text = (
        f"In per cent; {LEVEL_TEXT} intervals from {RESAMPLES} resamples of the {found.images:,} images, the "
        f"same for both sides. The interval of the difference {holds}. Seeds are a second source of spread, "
        "which is in no interval: "
    )
    spreads = [side.standard_deviation for side in found.sides]
    if spreads == [None, None]:
        return f"{text}with one run a side nothing is known of it."
    one, two = ("unknown (one run)" if spread is None else f"{spread:.1f}" for spread in spreads)
    return f"{text}the standard deviation over runs is {one} on the first side and {two} on the second."
