"""A run as one self-contained page: curves, thresholds, classes, confusion, images, configuration, origin.

Everything but confusion, the best and worst images and the CAMs over the steps is read from the run's folder
(and its tags from the tracking store, if that answers), so the page of a running or broken run shows what
there is so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from plotly.offline import get_plotlyjs
from torch import Tensor

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.evaluation.intervals import LEVEL_TEXT, interval_text
from cosa_dist.evaluation.report import SOURCES, EvalReport, read_reports, split_measurement
from cosa_dist.reports.page import curve_data, data_uri, finite, render_page
from cosa_dist.reports.run_analysis import ErrorAnalysis, Evolution
from cosa_dist.reports.tracked_runs import read_tags
from cosa_dist.tracking.mirror import metric_series

PICTURE_SIDE = 1100
CURVE_PREFIXES = ("train/", "val/")
THRESHOLDS = "train/threshold_"
SPEED = tuple(
    f"train/{name}"
    for name in (
        *("learning_rate", "gradient_norm", "images_per_second", "loader_wait_share"),
        *("model_tflops", "mfu", "gpu_memory_gb", "gpu_memory_reserved_gb"),
    )
)


@dataclass(frozen=True)
class RunContent:
    """What a run's folder and its tracking run hold."""

    name: str
    finished: bool
    config: str
    """YAML text"""
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    reports: Sequence[EvalReport] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: Path, pictures: int = 6) -> RunContent:
    """Read what a run folder holds, with its first `pictures` pictures; ValueError if it is none."""
    run = RunFolder(folder.resolve())
    if not run.config_file.is_file():
        raise ValueError(f"{folder} is no run folder (it has no config.yaml); give outputs/runs/NAME")
    try:
        note = run.read_note()
    except ConfigError:
        note = RunNote("", "")
    series = metric_series(run.metrics_file) if run.metrics_file.is_file() else {}
    return RunContent(
        name=run.name,
        finished=note.finished,
        config=run.config_file.read_text(encoding="utf-8"),
        curves={key: points for key, points in series.items() if key.startswith(CURVE_PREFIXES)},
        reports=list(read_reports(folder).values()),
        pictures={path.stem: path for path in sorted(run.pictures.glob("*.png"))[:pictures]},
        tags=read_tags(note.tracking_uri, note.run_id),
    )


def run_page(run: RunContent, errors: ErrorAnalysis | str = "", evolution: Evolution | str = "") -> str:
    """Make the page as HTML that needs no other file and no network.

    In place of `errors` (of validation images) and `evolution` (a few images over the run's steps) the page
    says why they are left out, if they are a reason in words.
    """
    return render_page(
        "run_page.html.j2",
        title=f"Run {run.name}",
        run=run,
        scored=[one for one in run.reports if any(score.miou is not None for score in one.scores.values())],
        why_no_scores=run.reports[0].without_score() if run.reports else "they come at the end",
        split_measurement=split_measurement,
        sources=SOURCES,
        level=LEVEL_TEXT,
        interval_text=interval_text,
        pictures={name: _picture(path) for name, path in run.pictures.items()},
        errors=errors,
        evolution=evolution,
        data=_plots(run, errors),
        plotly=get_plotlyjs(),
    )


def _picture(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(picture, PICTURE_SIDE)


def _plots(run: RunContent, errors: ErrorAnalysis | str) -> dict[str, Any]:
    """The numbers that the page's script draws."""
    curves = {key: curve_data(points) for key, points in run.curves.items()}
    names = ["background", *run.reports[0].class_names] if run.reports else []
    trained = [key for key in curves if key.startswith("train/")]
    return {
        "losses": [key for key in trained if not key.startswith((THRESHOLDS, *SPEED))],
        "scores": [key for key in curves if key.startswith("val/") and "miou" in key],
        "thresholds": [key for key in trained if key.startswith(THRESHOLDS)],
        "other": [key for key in SPEED if key in curves],
        "curves": curves,
        "names": names,
        "iou": {
            report.network: {key: finite(score.iou) for key, score in report.scores.items()}
            for report in run.reports
        },
        "measurements": list(dict.fromkeys(key for report in run.reports for key in report.scores)),
        "confusion": None if isinstance(errors, str) or not names else row_shares(errors.confusion),
    }


def row_shares(confusion: Tensor) -> list[list[float | None]]:
    """Per cent of each true class's pixels that go to each class; None in the row of a class without any."""
    shares = 100.0 * confusion.double() / confusion.sum(1, keepdim=True)
    return [finite(row) for row in shares.tolist()]
