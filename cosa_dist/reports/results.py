"""Results of finished runs: what a run reached, as a row that is stored as a line of JSON.

Rows are made from run folders; `result_tables` makes Markdown tables of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import RECIPES, load_config
from cosa_dist.config.options import flatten, known_keys
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.trial import read_trial
from cosa_dist.evaluation.report import EvalReport, read_reports
from cosa_dist.reports.tracked_runs import (
    NOT_THE_EXPERIMENT,
    NOT_THE_EXPERIMENT_SECTIONS,
    evaluation_text,
)
from cosa_dist.tracking.mirror import metric_series

CAM_CONTROL = "cam_predicted_labels"
OTHER_FIELDS = (
    *("recipe", "data.label", "training.checkpoint_minutes"),
    *(f"evaluation.{name}" for name in ("every", "limit", "batch_size", "cam_control", "crf.enabled")),
    *(f"evaluation.{name}" for name in ("size", "scales", "flip")),
)
"""options that stand in other fields of a row, or change no final result"""
SECTIONS = (*NOT_THE_EXPERIMENT_SECTIONS, "stage_one.")


@dataclass(frozen=True)
class ResultRow:
    """What one finished run reached; per cent, of its better network. Empty or None: not known."""

    recipe: str
    dataset: str
    commit: str
    seed: int | None
    miou: dict[str, float | None]
    """mIoU by measurement (`unfiltered`, `cam_true_labels`, ...); only CAMs' without a segmentation"""
    network: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """dotted options that differ from the recipe's and may change a result, but for those of `evaluation`"""
    note: str = ""
    """what else sets the run apart, such as the masks that it learned from"""
    split: str = "val"
    images: int | None = None
    image_set: str = ""
    """digest of classes and evaluated images"""
    evaluation: str = ""
    """size, scales and mirroring"""
    iou: dict[str, float | None] = field(default_factory=dict)
    """unfiltered IoU by class, background included; empty without a trained segmentation"""
    context: dict[str, float] = field(default_factory=dict)
    """unfiltered share of the coexisting context's background pixels by predicted class"""
    ignored: float | None = None
    """pixels that pseudo-masks leave out"""
    seconds: float | None = None
    """training time; in rows without `evaluation_seconds` from the first record to the last"""
    evaluation_seconds: float | None = None
    machine: str = ""
    combination: str = ""
    """name in an ablation, of older rows without options"""


ROW = TypeAdapter(ResultRow)


def read_result(folder: Path, commit: str = "", note: str = "", machine: str = "") -> ResultRow:
    """The row of a finished run, from its folder; of its networks, that of the higher unfiltered mIoU.

    A control run trains classifiers only: the scores of its segmentation mean nothing and stay out. `commit`
    counts where the folder notes none; `note` and `machine` are what no folder knows.

    Raises:
        ConfigError: no finished run, or an unknown commit.
    """
    run = RunFolder(folder.resolve())
    config, noted = run.read_config(), run.read_note()
    reports = read_reports(run.path)
    if not noted.finished or not reports:
        raise ConfigError(f"{folder}: the run is not finished, or has no report of its evaluation")
    trial = read_trial(run)
    commit = noted.commit or (trial.commit if trial else "") or commit
    if not commit:
        raise ConfigError(f"{folder} does not note its commit (an earlier version): give it with --commit")
    last = {key: points[-1][1] for key, points in metric_series(run.metrics_file).items()}
    segments = config.kind != "control"
    report, miou = _better(reports, last, segments)
    names = ("background", *report.class_names)
    score = report.scores["unfiltered"]
    context = score.context_as_class if segments else ()
    return ResultRow(
        recipe=config.recipe,
        dataset=config.data.label or Path(config.data.shards).name,
        commit=commit,
        seed=config.seed,
        miou=miou,
        network=report.network,
        options=changed_options(config),
        note=note,
        split=config.data.val_split,
        images=report.images,
        image_set=report.image_set,
        evaluation=evaluation_text(flatten(config)),
        iou=dict(zip(names, score.iou, strict=True)) if segments else {},
        context=dict(zip(names, context, strict=True)) if context else {},
        seconds=last.get("final/training_seconds"),
        evaluation_seconds=last.get("final/evaluation_seconds"),
        machine=machine,
    )


def _better(
    reports: Mapping[str, EvalReport], last: Mapping[str, float], segments: bool
) -> tuple[EvalReport, dict[str, float | None]]:
    """The report of the better network, and its mIoU by measurement; `last` has a run's last metrics."""

    def figures(report: EvalReport) -> dict[str, float | None]:
        control = last.get(f"final/{report.network}/cam_control_predicted_labels")
        found = {key: score.miou for key, score in report.scores.items() if segments or "cam" in key}
        return found if control is None else {**found, CAM_CONTROL: control}

    judged = ("unfiltered",) if segments else (CAM_CONTROL, "cam_true_labels")
    miou = {name: figures(report) for name, report in reports.items()}
    best = max(miou, key=lambda name: next((s for key in judged if (s := miou[name].get(key))), 0.0))
    return reports[best], miou[best]


def _values(config: RunConfig) -> dict[str, Any]:
    """Options by dotted key; weights by their file's name."""
    tree = config.model_dump(mode="json")
    values = {key: reduce(dict.__getitem__, key.split("."), tree) for key in known_keys()}
    return values | {"model.weights": PurePath(config.model.weights).name}


@cache
def recipe_values(name: str, options: str = "{}") -> dict[str, Any]:
    """Values of a recipe of this package with options (JSON); of another recipe the defaults'."""
    known = name if (RECIPES / f"{name}.yaml").is_file() else None
    return _values(load_config(known, None, json.loads(options)))


def changed_options(config: RunConfig) -> dict[str, Any]:
    """A run's options that differ from its recipe's and may change a result, but for the evaluation's."""
    left_out = {*NOT_THE_EXPERIMENT, *OTHER_FIELDS} - {"model.weights"}
    usual = recipe_values(config.recipe)
    return {
        key: value
        for key, value in _values(config).items()
        if value != usual[key] and key not in left_out and not key.startswith(SECTIONS)
    }


def rows_to_text(rows: Sequence[ResultRow]) -> str:
    """One line of JSON per row."""
    return "".join(f"{ROW.dump_json(row, exclude_defaults=True).decode()}\n" for row in rows)


def read_rows(path: Path) -> list[ResultRow]:
    """Read a file of rows; ValueError with the number of a line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(ROW.validate_json(line))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"{path}, line {number} is no row of results: {reason}") from None
    return rows


def measured(row: ResultRow, measure: str) -> float | None:
    """A row's figure: mIoU by measurement, `iou CLASS`, `context CLASS`, or `ignored`."""
    kind, _, name = measure.partition(" ")
    if kind == "iou":
        return row.iou.get(name)
    if kind == "context":
        return row.context.get(name)
    return row.ignored if measure == "ignored" else row.miou.get(measure)
