"""Runs out of the tracking store: their results for the leaderboard, and more of a few chosen ones for pages.

Everything is read from the store, so that a page about runs of other people's machines can be made anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cosa_dist.config.schema import CrfConfig, EvaluationConfig
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.reports.leaderboard import UNKNOWN, RunRecord
from cosa_dist.tracking.mlflow_runs import connect
from cosa_dist.tracking.store import StoreError, first_line, require_store, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENDED = ("FINISHED", "FAILED", "KILLED")
NOT_THE_EXPERIMENT = (
    *("seed", "name", "output", "data.shards", "data.cache", "data.loader_workers"),
    *("model.weights", "model.weights_folder"),
    *("training.log_every", "training.checkpoint_every", "training.keep_checkpoints", "evaluation.pictures"),
)
NOT_THE_EXPERIMENT_SECTIONS = ("tracking.", "distributed.")
"""options that do not make another experiment; weights count by their file's name"""
CURVE_PREFIXES = ("train/", "val/")
PICTURES = "pictures"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDetails:
    """What a page shows of one run beside its line; empty where a run does not have it."""

    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """(step, value) by metric, from `train/` and `val/`"""
    iou: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """unfiltered IoU in per cent by network and class, background first"""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files by name"""


def read_runs(uri: str, experiments: Sequence[str] = ()) -> list[RunRecord]:
    """Read the runs of some experiments (all by default) from an existing store.

    Raises StoreError if the store is missing or does not answer, or an experiment does not exist.
    """
    require_store(uri)
    with store_errors(uri):
        client = connect(uri)
        found = {one.experiment_id: one.name for one in _all_pages(client.search_experiments)}
        missing = [name for name in experiments if name not in found.values()]
        if missing:
            known = ", ".join(sorted(found.values()))
            raise StoreError(f"no experiment named {', '.join(missing)}; there are: {known}")
        names = {key: name for key, name in found.items() if not experiments or name in experiments}
        return [
            _record(run, name)
            for key, name in names.items()
            for run in _all_pages(client.search_runs, experiment_ids=[key])
        ]


def _all_pages(search: Callable[..., Any], **wanted: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**wanted, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _record(run: Run, experiment: str) -> RunRecord:
    info, tags, params = run.info, dict(run.data.tags), dict(run.data.params)
    # A run that was taken up again still has the end of its first part.
    timed = info.status in ENDED and info.end_time is not None and info.start_time is not None
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or info.run_id[:8],
        experiment=experiment,
        status=info.status,
        metrics=dict(run.data.metrics),
        tags=tags,
        seconds=(info.end_time - info.start_time) / 1000 if timed else None,
        digest=experiment_digest(params, tags.get("data_fingerprint_train", "")),
        evaluation=evaluation_text(params),
        crf=crf_text(params),
    )


def experiment_digest(params: Mapping[str, str], training_data: str = "") -> str:
    """Short name of the options and the training data that make the experiment; empty without any option.

    Runs of one digest differ in seed, name, places and workers only.
    """
    kept = {
        key: value
        for key, value in params.items()
        if key not in NOT_THE_EXPERIMENT and not key.startswith(NOT_THE_EXPERIMENT_SECTIONS)
    }
    if not kept:
        return ""
    kept["weights"] = params.get("model.weights", "").replace("\\", "/").rsplit("/", 1)[-1]
    if training_data:
        kept["training data"] = training_data
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def evaluation_text(params: Mapping[str, str]) -> str:
    """All of a run's evaluation that moves a score, but its CRF, e.g. `448 square, 5 scales + mirror`.

    `params` are the recorded options by dotted key; runs of earlier versions have some of them only, and the
    defaults of the others. Scores of other settings do not stand in one ranking.
    """
    always, later = ("size", "flip"), ("geometry", "views_from", "merging", "merge_at")
    recorded = [name for name in later if f"evaluation.{name}" in params]
    try:
        details: dict[str, Any] = {name: params[f"evaluation.{name}"] for name in (*always, *recorded)}
        details["scales"] = json.loads(params["evaluation.scales"])
        return EvaluationConfig.model_validate(details).words
    except (KeyError, ValueError):
        return UNKNOWN


def crf_text(params: Mapping[str, str]) -> str:
    """The dense CRF of a run's evaluation in words."""
    numbers = [name for name in CrfConfig.model_fields if name != "enabled"]
    try:
        return CrfConfig.model_validate({name: params[f"evaluation.crf.{name}"] for name in numbers}).words
    except (KeyError, ValueError):
        return f"CRF: {UNKNOWN}"


def read_tags(uri: str, run_id: str) -> dict[str, str]:
    """Tags of a tracking run but for MLflow's own; none if the run has none or the store does not answer."""
    if not run_id:
        return {}
    try:
        require_store(uri)
        with store_errors(uri):
            tags: dict[str, str] = connect(uri).get_run(run_id).data.tags
    except (ValueError, OSError):
        return {}
    return {key: value for key, value in sorted(tags.items()) if not key.startswith("mlflow.")}


def read_details(uri: str, run_id: str, pictures: int = 6) -> RunDetails:
    """Read a run's curves, reports and first `pictures` pictures.

    A file that is missing or damaged (a store that was copied without its artifacts) is a warning. Raises
    StoreError if the store does not answer or has no such run.
    """
    from mlflow.exceptions import MlflowException

    with store_errors(uri):
        client = connect(uri)
        run = client.get_run(run_id)
        keys = [key for key in run.data.metrics if key.startswith(CURVE_PREFIXES)]
        curves = {key: _curve(client, run_id, key) for key in keys}
    try:
        with tempfile.TemporaryDirectory() as folder:
            reports, drawn = _fetch(client, run_id, pictures, folder)
            read = [EvalReport.from_json(path.read_text(encoding="utf-8")) for path in reports]
            iou = {report.network: _iou(report) for report in read}
            return RunDetails(curves, iou, {path.stem: path.read_bytes() for path in drawn})
    except (MlflowException, ValueError, KeyError, OSError) as error:
        name = run.info.run_name or run_id
        log.warning("run %s: its reports and pictures are left out: %s", name, first_line(error))
        return RunDetails(curves)


def _curve(client: MlflowClient, run_id: str, key: str) -> tuple[tuple[int, float], ...]:
    """Points by step; of a step that was logged twice (after a resume) the later one counts."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: (point.step, point.timestamp))
    return tuple({point.step: point.value for point in points}.items())


def _fetch(client: MlflowClient, run_id: str, pictures: int, folder: str) -> list[list[Path]]:
    """Download a run's reports and its first pictures."""
    names = [entry.path for entry in client.list_artifacts(run_id)]
    reports = [name for name in names if PurePosixPath(name).match("report_*.json")]
    drawn = [entry.path for entry in client.list_artifacts(run_id, PICTURES)] if PICTURES in names else []
    shown = [name for name in drawn if name.endswith(".png")][:pictures]
    wanted = (reports, shown)
    return [[Path(client.download_artifacts(run_id, name, folder)) for name in part] for part in wanted]


def _iou(report: EvalReport) -> dict[str, float | None]:
    return dict(zip(("background", *report.class_names), report.scores["unfiltered"].iou, strict=True))
