"""What an evaluation found: one frozen `EvalReport` per network, as metrics, JSON and tables.

All scores are per cent. A score without anything to stand on (a class in neither truth nor prediction, a data
set without context masks) is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import InstanceOf, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from cosa_dist.atomic import atomic_write
from cosa_dist.evaluation.intervals import (
    LEVEL_TEXT,
    ImageCounts,
    Interval,
    interval_text,
    miou_interval,
    too_few_images,
)
from cosa_dist.evaluation.protocols import Protocol

SOURCES = {"aux_cam_": "auxiliary CAM", "cam_": "CAM", "": "segmentation"}


def split_measurement(measurement: str) -> tuple[str, str]:
    """Source prefix and protocol of a measurement: `cam_true_labels` -> `cam_`, `true_labels`."""
    source = next(s for s in SOURCES if measurement.startswith(s))
    return source, measurement.removeprefix(source)


@dataclass(frozen=True)
class SegmentationScore:
    """How well one kind of prediction agrees with the masks, in per cent."""

    miou: float | None
    """over the classes that occur in the masks; None, like the accuracies, if no foreground class does"""
    pixel_accuracy: float | None
    mean_accuracy: float | None
    iou: tuple[float | None, ...]  # of each of the K classes, background first
    context_false_foreground: float | None = None
    """background pixels in the coexisting context predicted as foreground; None without contexts"""
    context_as_class: tuple[float, ...] = ()
    """the same pixels by predicted class, `[K]`; empty without contexts"""
    interval: Interval | None = None
    """of the mIoU, see `miou_interval`; None where it was not asked for or cannot be had"""


@dataclass(frozen=True)
class EvalReport:
    """The scores of one network on one set of images, in per cent."""

    network: str  # under which name it was evaluated, such as `online` or `assignment`
    class_names: tuple[str, ...]  # the C foreground classes
    images: int  # counted, each once
    images_without_mask: int  # left out because they have no mask
    scores: dict[str, SegmentationScore]
    """by measurement: `unfiltered`, `predicted_labels`, `true_labels` (segmentation), `cam_true_labels`,
    `aux_cam_true_labels`; with a CRF also `unfiltered_crf` and `true_labels_crf`"""
    map_image: float | None  # mean over the images of the average precision over classes (released code)
    map_class: float | None  # mean over the classes of the average precision over images (usual mAP)
    aux_map_class: float | None  # the same of the auxiliary classifier
    cam_miou_by_background: dict[float, float | None] = field(default_factory=dict)
    """mIoU of the CAM under `predicted_labels` by background threshold"""
    settings: dict[str, Any] = field(default_factory=dict)  # how it was measured
    image_set: str = ""  # digest of classes, images and masks; scores of another one are not comparable
    benchmark: str = ""  # the set that published results are of, such as `VOC val`; empty for any other
    counts: InstanceOf[ImageCounts] | None = field(default=None, compare=False, repr=False)
    """of each image; not in the JSON"""
    absent_classes: tuple[str, ...] = ()  # those without a pixel in the masks, which no mean counts
    rare_classes: tuple[str, ...] = ()  # those in too few images for an interval, if one was asked for

    def miou(self, protocol: Protocol = "unfiltered") -> float | None:
        """Segmentation mIoU in per cent under a protocol."""
        return self.scores[protocol].miou

    def with_intervals(self) -> EvalReport:
        """The report with the interval of every mIoU; the same without counts. Each takes seconds on COCO."""
        if self.counts is None:
            return self
        scores = {m: replace(s, interval=miou_interval(self.counts, m)) for m, s in self.scores.items()}
        names = ("background", *self.class_names)
        return replace(self, scores=scores, rare_classes=tuple(names[k] for k in self.counts.rare))

    def without_score(self) -> str:
        """Why there is no segmentation score; empty if there is one."""
        if self.miou() is not None:
            return ""
        if not self.images:
            return "no image has a mask"
        return "no class occurs in the masks (only background or ignored pixels)"

    def metrics(self) -> dict[str, float]:
        """Every score that has a value, by a name for trackers (`online/miou_unfiltered`)."""
        values: dict[str, float | None] = {"images": float(self.images)}
        for measurement, score in self.scores.items():
            source, protocol = split_measurement(measurement)
            for name in ("miou", "pixel_accuracy", "mean_accuracy", "context_false_foreground"):
                values[f"{source}{name}_{protocol}"] = getattr(score, name)
            low, high = score.interval or (None, None)
            values |= {f"{source}miou_{protocol}_low": low, f"{source}miou_{protocol}_high": high}
        for name in ("map_image", "map_class", "aux_map_class"):
            values[name] = getattr(self, name)
        for threshold, miou in self.cam_miou_by_background.items():
            values[f"cam_miou_predicted_labels_at_{threshold:g}"] = miou
        return {f"{self.network}/{k}": v for k, v in values.items() if v is not None}

    def tags(self) -> dict[str, str]:
        """What was evaluated, as labels of a tracking run."""
        counts = {"evaluated_images": str(self.images), "classes": str(len(self.class_names))}
        return {"image_set": self.image_set, "benchmark": self.benchmark, **counts}

    def per_class_rows(self) -> list[dict[str, str | float | None]]:
        """One row per class, background first: its name and its IoU in each measurement."""
        return [
            {"class": name, **{key: score.iou[index] for key, score in self.scores.items()}}
            for index, name in enumerate(("background", *self.class_names))
        ]

    def to_json(self) -> str:
        """The whole report as JSON text; `from_json` gives an equal report back."""
        values = asdict(replace(self, counts=None))
        del values["counts"]
        return json.dumps(values, indent=2, allow_nan=False)

    def write(self, report_file: Path, counts_file: Path) -> None:
        """Write the JSON, and before it the counts of the images if there are any."""
        if self.counts is not None:
            self.counts.save(counts_file)
        atomic_write(report_file, self.to_json())

    @classmethod
    def from_json(cls, text: str) -> EvalReport:
        """Read a report that `to_json` wrote; ValueError with what is wrong with another text."""
        try:
            report = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"no evaluation report ({where}{first['msg']})") from None
        if "unfiltered" not in report.scores:
            raise ValueError("no evaluation report (scores: unfiltered is missing)")
        return report

    @classmethod
    def read(cls, report_file: Path) -> EvalReport:
        """Read what `write` wrote, without the counts; ValueError for a damaged file."""
        try:
            return cls.from_json(report_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{report_file} is damaged: {error}; put it back from a copy, or remove it"
            ) from None


def read_reports(folder: Path) -> dict[str, EvalReport]:
    """The final reports that a run left in its folder, by network, the trained network's first."""
    reports = map(EvalReport.read, sorted(folder.glob("report_*.json"), reverse=True))
    return {report.network: report for report in reports}


def better_report(reports: Mapping[str, EvalReport]) -> EvalReport | None:
    """The (first) report of the highest unfiltered mIoU, by which networks are chosen, if any has one."""
    scored = [(miou, report) for report in reports.values() if (miou := report.miou()) is not None]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def as_text(reports: Sequence[EvalReport], *, per_class: bool = True, width: int = 110) -> str:
    """The tables of some reports as plain text, at most `width` characters wide."""
    console = Console(width=width, color_system=None, file=StringIO())
    with console.capture() as captured:
        console.print(_summary_table(reports))
        for report in reports if per_class else ():
            console.print(_class_table(report))
    return captured.get()


def _summary_table(reports: Sequence[EvalReport]) -> Table:
    """One row per network and measurement: mIoU, accuracies, and the context's false foreground."""
    scores = [score for report in reports for score in report.scores.values()]
    columns = {"miou": "mIoU", "pixel_accuracy": "pixel acc.", "mean_accuracy": "mean acc."}
    if any(score.context_false_foreground is not None for score in scores):
        columns["context_false_foreground"] = "context as foreground"
    table = Table(title="Evaluation (per cent)")
    for title in ("network", "prediction", "protocol"):
        table.add_column(title, no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right")
    if any(score.interval for score in scores):
        table.add_column(f"mIoU, {LEVEL_TEXT}", justify="right")
    captions = []
    for report in reports:
        for measurement, score in report.scores.items():
            source, protocol = split_measurement(measurement)
            cells = [_shown(getattr(score, name)) for name in columns]
            cells += [interval_text(score.interval)] * (len(table.columns) - 3 - len(cells))
            table.add_row(report.network, SOURCES[source], protocol, *cells)
        table.add_section()
        images = report.benchmark or (f"set {report.image_set[:8]}" if report.image_set else "")
        reason = report.without_score()
        captions.append(
            f"{report.network}: {report.images} images{f' ({images})' if images else ''}, "
            f"mAP {_shown(report.map_class)} per class, {_shown(report.map_image)} per image"
            f"{f'; no scores: {reason}' if reason else ''}"
        )
        if report.absent_classes and report.images:
            captions.append(f"{report.network}: in no mask: {', '.join(report.absent_classes)}")
        if report.rare_classes:
            reason = too_few_images(report.rare_classes)
            captions.append(f"{report.network}: no {LEVEL_TEXT} interval: {reason}")
    table.caption = "\n".join(captions)
    return table


def _class_table(report: EvalReport) -> Table:
    """One row per class with its IoU in each measurement."""
    table = Table("class", title=f"IoU per class, {report.network} network (per cent)")
    for measurement in report.scores:
        table.add_column(measurement.replace("_", " "), justify="right")
    for index, name in enumerate(("background", *report.class_names)):
        table.add_row(name, *(_shown(score.iou[index]) for score in report.scores.values()))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
