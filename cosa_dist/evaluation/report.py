"""What an evaluation found: one frozen `EvalReport` per network.

All scores are per cent. A score without anything to stand on (a class in neither truth nor
prediction, a data set without context masks) is None. Reports become MLflow metrics, rows of a
per-class table, JSON and a table for the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from cosa_dist.evaluation.protocols import EvaluationSettings, Protocol

SOURCES = {"cam_": "CAM", "aux_cam_": "auxiliary CAM", "": "segmentation"}


def split_measurement(measurement: str) -> tuple[str, str]:
    """Source prefix and protocol of a measurement: `cam_true_labels` -> `cam_`, `true_labels`."""
    source = next((s for s in ("aux_cam_", "cam_") if measurement.startswith(s)), "")
    return source, measurement.removeprefix(source)


@dataclass(frozen=True)
class SegmentationScore:
    """How well one kind of prediction agrees with the masks, in per cent.

    Attributes:
        miou: mean IoU over the classes that occur in the masks; None, like the accuracies, if no foreground
            class does.
        pixel_accuracy: share of the counted pixels with the right class.
        mean_accuracy: mean over the occurring classes of the share of their pixels that are right.
        iou: IoU of each of the K classes, background first.
        context_false_foreground: share of the background pixels inside the coexisting context that
            are predicted as foreground; None where the data set has no context masks.
        context_as_class: share of the same pixels that is predicted as each of the K classes; empty
            where the data set has no context masks.
    """

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    iou: tuple[float | None, ...]
    context_false_foreground: float | None = None
    context_as_class: tuple[float, ...] = ()


@dataclass(frozen=True)
class EvalReport:
    """The scores of one network on one set of images, in per cent.

    Attributes:
        network: name under which the network was evaluated, such as `online` or `assignment`.
        class_names: the C foreground classes.
        images: number of images that were counted, each once.
        images_without_mask: number of images that were left out because they have no mask.
        scores: `unfiltered`, `predicted_labels`, `true_labels` (segmentation), `cam_true_labels`,
            `aux_cam_true_labels`; with a CRF also `unfiltered_crf` and `true_labels_crf`.
        map_image: mean over the images of the average precision over classes (released code).
        map_class: mean over the classes of the average precision over images (usual mAP).
        aux_map_class: the same of the auxiliary classifier.
        cam_miou_by_background: mIoU of the CAM under `predicted_labels` for each background
            threshold of the settings' grid.
        settings: how it was measured.
        image_set: digest of the classes and of the counted images; scores of another one are not comparable.
        benchmark: the set that published results are of, such as `VOC val`; empty for any other.
    """

    network: str
    class_names: tuple[str, ...]
    images: int
    images_without_mask: int
    scores: dict[str, SegmentationScore]
    map_image: float | None
    map_class: float | None
    aux_map_class: float | None
    cam_miou_by_background: dict[float, float | None] = field(default_factory=dict)
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    image_set: str = ""
    benchmark: str = ""

    def miou(self, protocol: Protocol = "unfiltered") -> float | None:
        """Segmentation mIoU in per cent under a protocol."""
        return self.scores[protocol].miou

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
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EvalReport:
        """Read a report that `to_json` wrote.

        Raises:
            ValueError: if the text is not such a report, with what is wrong.
        """
        try:
            report = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"no evaluation report ({where}{first['msg']})") from None
        if "unfiltered" not in report.scores:
            raise ValueError("no evaluation report (scores: unfiltered is missing)")
        return report


def read_reports(folder: Path) -> dict[str, EvalReport]:
    """The final reports that a run left in its folder, by network, the trained network's first.

    Raises:
        ValueError: a file is no report.
    """
    reports = {}
    for path in sorted(folder.glob("report_*.json"), reverse=True):
        try:
            report = EvalReport.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; put it back from a copy, or remove it") from None
        reports[report.network] = report
    return reports


def better_report(reports: Mapping[str, EvalReport]) -> EvalReport | None:
    """The report of the higher unfiltered mIoU, by which networks and checkpoints are chosen.

    The first of equals; None if no report has one.
    """
    scored = [(miou, report) for report in reports.values() if (miou := report.miou()) is not None]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _images(report: EvalReport) -> str:
    """What was evaluated, e.g. `1449 images (VOC val)`."""
    name = report.benchmark or (f"set {report.image_set[:8]}" if report.image_set else "")
    return f"{report.images} images" + (f" ({name})" if name else "")


def _why_without(report: EvalReport) -> str:
    reason = report.without_score()
    return f"; no scores: {reason}" if reason else ""


def summary_table(reports: Sequence[EvalReport]) -> Table:
    """One row per network and measurement: mIoU, accuracies, and the context's false foreground."""
    context = any(
        score.context_false_foreground is not None for report in reports for score in report.scores.values()
    )
    table = Table(title="Evaluation (per cent)")
    for column in ("network", "prediction", "protocol"):
        table.add_column(column)
    for column in ("mIoU", "pixel acc.", "mean acc.", *(["context as foreground"] * context)):
        table.add_column(column, justify="right")
    for report in reports:
        for measurement, score in report.scores.items():
            source, protocol = split_measurement(measurement)
            cells = [_shown(score.miou), _shown(score.pixel_accuracy), _shown(score.mean_accuracy)]
            cells += [_shown(score.context_false_foreground)] * context
            table.add_row(report.network, SOURCES[source], protocol, *cells)
        table.add_section()
    table.caption = "\n".join(
        f"{report.network}: {_images(report)}, mAP {_shown(report.map_class)} per class, "
        f"{_shown(report.map_image)} per image{_why_without(report)}"
        for report in reports
    )
    return table


def class_table(report: EvalReport) -> Table:
    """One row per class with its IoU in each measurement."""
    table = Table(title=f"IoU per class, {report.network} network (per cent)")
    table.add_column("class")
    for measurement in report.scores:
        table.add_column(measurement.replace("_", " "), justify="right")
    for index, name in enumerate(("background", *report.class_names)):
        table.add_row(name, *(_shown(score.iou[index]) for score in report.scores.values()))
    return table


def as_text(reports: Sequence[EvalReport], *, per_class: bool = True, width: int = 110) -> str:
    """The tables of some reports as plain text, at most `width` characters wide."""
    console = Console(width=width, color_system=None, file=StringIO())
    with console.capture() as captured:
        console.print(summary_table(reports))
        for report in reports if per_class else ():
            console.print(class_table(report))
    return captured.get()
