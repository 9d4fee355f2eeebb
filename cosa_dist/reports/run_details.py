"""More of a few chosen runs than the leaderboard's tables need: learning curves, IoU per class, pictures.

Read from the tracking store, so that a page about runs of other people's machines can be made anywhere.
What a run does not have (a killed run has no report), or what cannot be read any more, is left empty.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cosa_dist.evaluation.report import EvalReport
from cosa_dist.tracking.store import StoreError, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVE_PREFIXES = ("train/", "val/")
PICTURES = "pictures"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDetails:
    """What a page shows of one run beside its line."""

    run_id: str
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """(step, value) by metric, from `train/` and `val/`"""
    iou: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """unfiltered IoU in per cent by network and class, background first"""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files by name"""


def read_details(uri: str, run_id: str, pictures: int = 6) -> RunDetails:
    """Read a run's curves, reports and first `pictures` pictures.

    A file that is missing or damaged (a store that was copied without its artifacts) is a warning.

    Raises:
        StoreError: the store does not answer or has no such run.
    """
    from mlflow.exceptions import MlflowException

    from cosa_dist.tracking.mlflow_runs import connect

    try:
        client = connect(uri)
        run = client.get_run(run_id)
        curves = {
            key: _history(client, run_id, key) for key in run.data.metrics if key.startswith(CURVE_PREFIXES)
        }
    except MlflowException as error:
        first = error.message.splitlines()[0]
        raise StoreError(f"tracking store {without_password(uri)}: {first}") from error
    try:
        iou, images = _files(client, run_id, pictures)
    except (MlflowException, ValueError, KeyError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("run %s: its reports and pictures are left out: %s", run.info.run_name or run_id, first)
        iou, images = {}, {}
    return RunDetails(run_id, curves, iou, images)


def _files(
    client: MlflowClient, run_id: str, pictures: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, bytes]]:
    """IoU by network and the first pictures, out of a run's files."""
    names = [entry.path for entry in client.list_artifacts(run_id)]
    with tempfile.TemporaryDirectory() as folder:
        reports = [
            EvalReport.from_json(_fetch(client, run_id, name, folder).decode())
            for name in names
            if PurePosixPath(name).match("report_*.json")
        ]
        shown = client.list_artifacts(run_id, PICTURES) if PICTURES in names else []
        files = [entry.path for entry in shown if entry.path.endswith(".png")][:pictures]
        images = {PurePosixPath(name).stem: _fetch(client, run_id, name, folder) for name in files}
    return {report.network: _iou(report) for report in reports}, images


def _history(client: MlflowClient, run_id: str, key: str) -> tuple[tuple[int, float], ...]:
    """Points by step; of a step that was logged twice (after a resume) the later one counts."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: (point.step, point.timestamp))
    return tuple({point.step: (point.step, point.value) for point in points}.values())


def _iou(report: EvalReport) -> dict[str, float | None]:
    names = ("background", *report.class_names)
    return dict(zip(names, report.scores["unfiltered"].iou, strict=True))


def _fetch(client: MlflowClient, run_id: str, name: str, folder: str) -> bytes:
    return Path(client.download_artifacts(run_id, name, folder)).read_bytes()
