"""A run as one self-contained page: curves, thresholds, classes, confusion, images, configuration, origin.

Everything but confusion, the best and worst images and the CAMs over the steps is read from the run's folder
(and its tags from the tracking store, if that answers), so the page of a running or broken run shows what
there is so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from plotly.offline import get_plotlyjs

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.prepare import read_note
from cosa_dist.evaluation.report import EvalReport, read_reports, split_measurement
from cosa_dist.reports.embedded import data_uri, with_mask
from cosa_dist.reports.page import render_page
from cosa_dist.reports.run_evolution import Evolution, FollowedImage
from cosa_dist.reports.run_examination import Examination, JudgedImage, row_shares
from cosa_dist.tracking.mirror import METRICS_FILE, metric_series

PICTURE_SIDE = 1100
FOLLOWED_SIDE = 240
CURVE_PREFIXES = ("train/", "val/")
THRESHOLDS = "train/threshold_"
NO_LOSS = ("train/threshold_", "train/images_per_second", "train/learning_rate")


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder and its tracking run hold."""

    name: str
    finished: bool
    config: str
    """YAML text"""
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    reports: Sequence[EvalReport] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: Path, pictures: int = 6) -> RunFolder:
    """Read what a run folder holds.

    Raises:
        ValueError: it is no run folder.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{folder} is no run folder (it has no config.yaml); give outputs/runs/NAME")
    try:
        note = read_note(folder)
    except ConfigError:
        note = {}
    metrics = folder / METRICS_FILE
    return RunFolder(
        name=folder.resolve().name,
        finished=bool(note.get("finished")),
        config=config.read_text(encoding="utf-8"),
        curves=_curves(metric_series(metrics)) if metrics.is_file() else {},
        reports=list(read_reports(folder).values()),
        pictures={path.stem: path for path in sorted(folder.glob("pictures/*.png"))[:pictures]},
        tags=_tags(str(note.get("tracking_uri", "")), str(note.get("run_id", ""))),
    )


def _curves(series: Mapping[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """The learning curves; of a step that was recorded twice (after a resume) the later one counts."""
    return {
        key: sorted(dict(points).items())
        for key, points in sorted(series.items())
        if key.startswith(CURVE_PREFIXES)
    }


def _tags(uri: str, run_id: str) -> dict[str, str]:
    """Tags of the tracking run; none if the run has none or the store does not answer."""
    if not run_id:
        return {}
    from mlflow.exceptions import MlflowException

    from cosa_dist.tracking.mlflow_runs import connect

    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).is_file():  # asking for it would create it
        return {}
    try:
        tags: dict[str, str] = connect(uri).get_run(run_id).data.tags
    except (MlflowException, ValueError, OSError):
        return {}
    return {key: value for key, value in sorted(tags.items()) if not key.startswith("mlflow.")}


def run_page(
    run: RunFolder,
    examination: Examination | None = None,
    why_not: str = "",
    evolution: Evolution | None = None,
    why_no_evolution: str = "",
) -> str:
    """Make the page.

    Args:
        run: what `read_run` gave.
        examination: of validation images; left out, the page says `why_not` in its place.
        why_not: reason in words.
        evolution: a few images over the run's steps; left out, the page says `why_no_evolution`.
        why_no_evolution: reason in words.

    Returns:
        HTML that needs no other file and no network.
    """
    judged = [one for one in run.reports if any(score.miou is not None for score in one.scores.values())]
    return render_page(
        "run_page.html.j2",
        title=f"Run {run.name}",
        run=run,
        summary=[_summary(report) for report in run.reports],
        scores=_scores(judged),
        classes=[_class_rows(report) for report in judged],
        why_no_scores=run.reports[0].without_score() if run.reports else "they come at the end",
        pictures={name: _picture(path) for name, path in run.pictures.items()},
        examination=examination,
        why_not=why_not,
        ends=_ends(examination),
        evolution=evolution,
        followed=[_followed(one) for one in evolution.images] if evolution else [],
        why_no_evolution=why_no_evolution,
        data=_plots(run, examination),
        plotly=get_plotlyjs(),
    )


def _summary(report: EvalReport) -> dict[str, Any]:
    return {
        "network": report.network,
        "images": report.images,
        "without": report.images_without_mask,
        "map_class": shown(report.map_class),
        "map_image": shown(report.map_image),
    }


def _scores(reports: Sequence[EvalReport]) -> list[list[str]]:
    """One row per network and measurement, as in the terminal's table."""
    rows = []
    for report in reports:
        for measurement, score in report.scores.items():
            source, protocol = split_measurement(measurement)
            numbers = (score.miou, score.pixel_accuracy, score.mean_accuracy)
            kind = {"": "segmentation", "cam_": "CAM", "aux_cam_": "auxiliary CAM"}[source]
            rows.append([report.network, kind, protocol, *map(shown, numbers)])
    return rows


def _class_rows(report: EvalReport) -> dict[str, Any]:
    """IoU per class and measurement of one network."""
    rows = report.per_class_rows()
    return {
        "network": report.network,
        "columns": list(report.scores),
        "rows": [
            {"name": row["class"], "cells": [shown(_value(row[key])) for key in report.scores]}
            for row in rows
        ],
    }


def _value(cell: str | float | None) -> float | None:
    return cell if isinstance(cell, float | int) else None


def shown(value: float | None) -> str:
    """A score as text."""
    return "-" if value is None else f"{value:.2f}"


def _plots(run: RunFolder, examination: Examination | None) -> dict[str, Any]:
    """The numbers that the page's script draws; those that are not finite become null."""
    curves = {
        key: {"step": [step for step, _ in points], "value": [_finite(value) for _, value in points]}
        for key, points in run.curves.items()
    }
    networks = {
        report.network: {key: list(map(_finite, score.iou)) for key, score in report.scores.items()}
        for report in run.reports
    }
    names = ["background", *run.reports[0].class_names] if run.reports else []
    return {
        "losses": [key for key in curves if key.startswith("train/") and not key.startswith(NO_LOSS)],
        "scores": [key for key in curves if key.startswith("val/") and "miou" in key],
        "thresholds": [key for key in curves if key.startswith(THRESHOLDS)],
        "other": ["train/learning_rate", "train/images_per_second"],
        "curves": curves,
        "names": names,
        "iou": networks,
        "measurements": list(dict.fromkeys(key for report in run.reports for key in report.scores)),
        "confusion": row_shares(examination.confusion) if examination and names else None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _ends(examination: Examination | None) -> list[dict[str, Any]]:
    """The worst and the best images with their pictures."""
    if examination is None:
        return []
    parts = (("Worst images", examination.worst), ("Best images", examination.best))
    return [{"title": title, "images": [_judged(one) for one in images]} for title, images in parts if images]


def _judged(one: JudgedImage) -> dict[str, str]:
    return {
        "id": one.id,
        "score": f"{one.score:.1f}",
        "image": data_uri(one.image),
        "truth": data_uri(with_mask(one.image, one.truth)),
        "prediction": data_uri(with_mask(one.image, one.prediction)),
    }


def _followed(one: FollowedImage) -> dict[str, Any]:
    """An image, and what each step made of it."""
    return {
        "id": one.id,
        "tags": ", ".join(one.tags) or "no tag",
        "image": data_uri(one.image, FOLLOWED_SIDE),
        "moments": [
            {
                "step": moment.step,
                "cam": data_uri(moment.cam, FOLLOWED_SIDE) if moment.cam else "",
                "prediction": data_uri(with_mask(one.image, moment.prediction), FOLLOWED_SIDE),
            }
            for moment in one.moments
        ],
    }


def _picture(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(picture.convert("RGB"), PICTURE_SIDE)
