"""Results of finished runs: what a run reached, as a row that is stored as a line of JSON.

Rows are made from run folders; `result_tables` makes Markdown tables of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import RECIPES, load_config, read_yaml
from cosa_dist.config.options import flatten, has_option, known_keys
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.shards.split import read_description
from cosa_dist.distributed.labelling.run import LabellingOutcome
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.trial import read_trial
from cosa_dist.evaluation.report import EvalReport, read_reports
from cosa_dist.reports.tracked_runs import (
    NOT_THE_EXPERIMENT,
    NOT_THE_EXPERIMENT_SECTIONS,
    evaluation_text,
    read_tags,
)
from cosa_dist.tracking.mirror import metric_series

CAM_CONTROL = "cam_predicted_labels"
OTHER_FIELDS = ("recipe", "data.label", "training.checkpoint_minutes", "evaluation.crf.enabled")
SECTIONS = (*NOT_THE_EXPERIMENT_SECTIONS, "stage_one.", "evaluation.")
"""options that stand in other fields of a row, or change no final result"""
OF_THE_EVALUATION = ("evaluation.cam_background", "evaluation.crf.")
"""those of a section above that `evaluation` does not tell"""


@dataclass(frozen=True)
class ResultRow:
    """What one finished run reached; per cent, of its better network. Empty or None: not known."""

    recipe: str
    dataset: str
    commit: str
    seed: int | None
    miou: dict[str, float | None]
    """mIoU by measurement (`unfiltered`, `cam_true_labels`, ...); only CAMs' without a segmentation"""
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of the mIoU over images, by measurement"""
    network: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """all dotted options that may change a result, but for those of `evaluation`"""
    options: dict[str, Any] = field(default_factory=dict)
    """those that differ from the recipe's; made anew from `settings` when a row is read, so that a recipe
    that has changed since does not hide it"""
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
    """The row of a finished run or labelling, from its folder; of a run's networks, that of the higher mIoU.

    A control run trains classifiers only: the scores of its segmentation mean nothing and stay out. `commit`
    counts where neither the folder nor the tracking store knows it, `machine` instead of what these know.

    Raises:
        ConfigError: not finished, or of an unknown commit.
    """
    run = RunFolder(folder.resolve())
    noted = run.read_note()
    tags = read_tags(noted.tracking_uri, noted.run_id)
    trial = read_trial(run)
    if not noted.finished:
        raise ConfigError(f"{folder}: the run is not finished")
    commit = noted.commit or (trial.commit if trial else "") or tags.get("git_commit", "") or commit
    if not commit:
        raise ConfigError(f"{folder} does not note its commit (an earlier version): give it with --commit")
    cpus = tags.get("cpu_count", "")
    row = (_run_row if run.config_file.is_file() else _masks_row)(run)
    return replace(
        with_options(row),
        commit=commit,
        note=", ".join(filter(None, (row.note, note))),
        machine=machine or tags.get("gpus") or (f"{cpus} CPUs" if cpus else ""),
    )


def _run_row(run: RunFolder) -> ResultRow:
    """The row of a training."""
    config, reports = run.read_config(), read_reports(run.path)
    if not reports:
        raise ConfigError(f"{run.path} has no report of an evaluation (stages have folders of their own)")
    last = {key: points[-1][1] for key, points in metric_series(run.metrics_file).items()}
    segments = config.kind != "control"
    report, miou = _better(reports, last, segments)
    names = ("background", *report.class_names)
    score = report.scores["unfiltered"]
    context = score.context_as_class if segments else ()
    masks, note = _learned_from(config)
    return ResultRow(
        recipe=config.recipe,
        dataset=config.data.label or Path(config.data.shards).name,
        commit="",
        seed=config.seed,
        miou=miou,
        interval=_intervals(run, report, config.data.val_split, miou),
        network=report.network,
        settings=settings_of(config, read_yaml(run.config_file)) | masks,
        note=note,
        split=config.data.val_split,
        images=report.images,
        image_set=report.image_set,
        evaluation=evaluation_text(flatten(config)),
        iou=dict(zip(names, score.iou, strict=True)) if segments else {},
        context=dict(zip(names, context, strict=True)) if context else {},
        seconds=last.get("final/training_seconds"),
        evaluation_seconds=last.get("final/evaluation_seconds"),
    )


def _intervals(
    run: RunFolder, report: EvalReport, split: str, miou: Mapping[str, float | None]
) -> dict[str, tuple[float, float]]:
    """The intervals of a report, or those that `jobs/evaluate.py` gave the same scores later."""
    later = run.report_file(report.network, split)
    reports = [report, *([EvalReport.read(later)] if later.is_file() else [])]
    return {
        key: score.interval
        for one in reversed(reports)
        for key, score in one.scores.items()
        if score.interval and miou.get(key) == score.miou
    }


def _masks_row(run: RunFolder) -> ResultRow:
    """The row of a labelling: the quality of its pseudo-masks."""
    shards = run.path / "shards"
    quality = LabellingOutcome.read(shards).quality
    (split, made), *_ = _made_by(shards).items()
    first = RunFolder(run.path.with_name(made["run"]))
    trained = first.read_config()
    return ResultRow(
        recipe=trained.recipe,
        dataset=trained.data.label or Path(trained.data.shards).name,
        commit="",
        seed=trained.seed,
        miou={"pseudo_masks": quality["miou"], "pseudo_masks_missed": quality["miou_missed"]},
        network=made["network"],
        settings=settings_of(trained, read_yaml(first.config_file)) | _mask_options(made),
        note="pseudo-masks",
        split=split,
        images=quality["images_with_truth"],
        image_set=quality["image_set"],
        iou=quality["iou"],
        ignored=quality["ignored"],
    )


def _made_by(shards: Path) -> dict[str, dict[str, Any]]:
    """By split, the run that made its pseudo-masks and how; empty where the masks are none."""
    splits = read_description(str(shards))["splits"]
    return {name: split["pseudo_masks"] for name, split in splits.items() if "pseudo_masks" in split}


def _mask_options(made: Mapping[str, Any]) -> dict[str, Any]:
    return {f"pseudo_masks.{key}": value for key, value in made["settings"].items()}


def _learned_from(config: RunConfig) -> tuple[dict[str, Any], str]:
    """How the pseudo-masks of a segmenter were made, as options, and in words whose they are."""
    if config.kind != "segmenter" or config.supervision != "pseudo_masks":
        return {}, ""
    made = _made_by(Path(config.data.shards)).get(config.data.train_split)
    if made is None:
        return {}, ""
    first = RunFolder(Path(config.data.shards).parent.with_name(made["run"]))
    return _mask_options(made), f"on masks of {first.read_config().recipe}" if first.path.is_dir() else ""


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


def settings_of(config: RunConfig, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run that may change a result, but for the evaluation's.

    `recorded` is the content of the run's file: an option that came later is not among its settings.
    """
    left_out = {*NOT_THE_EXPERIMENT, *OTHER_FIELDS} - {"model.weights"}
    return {
        key: value
        for key, value in _values(config).items()
        if key not in left_out
        and (key.startswith(OF_THE_EVALUATION) or not key.startswith(SECTIONS))
        and has_option(recorded, key)
    }


def with_options(row: ResultRow) -> ResultRow:
    """A row whose options are its settings that differ from its recipe's of today, if it has any settings."""
    usual = recipe_values(row.recipe)
    own = {key: value for key, value in row.settings.items() if key not in usual or value != usual[key]}
    return replace(row, options=own) if row.settings else row


def rows_to_text(rows: Sequence[ResultRow]) -> str:
    """One line of JSON per row."""
    stored = (replace(row, options={}) if row.settings else row for row in rows)
    return "".join(f"{ROW.dump_json(row, exclude_defaults=True).decode()}\n" for row in stored)


def read_rows(path: Path) -> list[ResultRow]:
    """Read a file of rows; ValueError with the number of a line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(with_options(ROW.validate_json(line)))
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
