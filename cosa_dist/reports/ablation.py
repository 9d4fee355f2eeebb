"""The results of an ablation: one line of JSON per finished run, and the Markdown table made from them.

The table gives mean and range over the seeds and names protocol, data set, recipe and commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pydantic import TypeAdapter, ValidationError

from cosa_dist.atomic import atomic_write
from cosa_dist.config.ablation import Ablation, Combination
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.plan import SweepPlan, trial_config
from cosa_dist.distributed.sweep.run import SweepResult
from cosa_dist.distributed.sweep.trial import Trial
from cosa_dist.evaluation.report import read_reports
from cosa_dist.reports.leaderboard import grouped
from cosa_dist.reports.leaderboard_views import markdown_table


@dataclass(frozen=True)
class AblationRow:
    """What one run of a combination reached; per cent, of the network with the higher unfiltered mIoU."""

    combination: str
    parts: tuple[str, ...]
    seed: int
    recipe: str
    dataset: str
    commit: str
    network: str
    miou: dict[str, float | None]
    """mIoU by measurement (`unfiltered`, `cam_true_labels`, ...); only CAMs' without a segmentation"""
    iou: dict[str, float | None]
    """unfiltered IoU by class, background included; empty without a trained segmentation"""
    context: dict[str, float]
    """unfiltered share of the coexisting context's background pixels by predicted class; empty without one"""
    seconds: float
    """training time"""
    image_set: str = ""
    """digest of classes and evaluated images; empty in older rows"""


ROW = TypeAdapter(AblationRow)
ROWS_FILE = "ablation.jsonl"


def _row(plan: SweepPlan, combination: Combination, trial: Trial) -> AblationRow:
    """A trial's row, from the report of its better network.

    A control run trains classifiers only: the scores of its segmentation mean nothing and stay out.
    """
    config = trial_config(plan.base, trial.options)
    segments = config.kind == "cosa"
    reports = read_reports(RunFolder.of(config).path).values()
    judged = "unfiltered" if segments else "cam_true_labels"
    report = max(reports, key=lambda report: report.scores[judged].miou or 0.0)
    names = ("background", *report.class_names)
    score = report.scores["unfiltered"]
    context = score.context_as_class if segments else ()
    return AblationRow(
        combination=combination.name,
        parts=combination.parts,
        seed=config.seed,
        recipe=config.recipe,
        dataset=config.data.label or Path(config.data.shards).name,
        commit=trial.commit,
        network=report.network,
        miou={key: score.miou for key, score in report.scores.items() if segments or "cam" in key},
        iou=dict(zip(names, score.iou, strict=True)) if segments else {},
        context=dict(zip(names, context, strict=True)) if context else {},
        seconds=trial.seconds,
        image_set=report.image_set,
    )


def write_ablation(plan: SweepPlan, result: SweepResult, context_class: str = "") -> tuple[Path, str]:
    """Write the rows of an ablation's finished trials into the sweep's folder; return path and table."""
    rows = [
        _row(plan, combination, trial)
        for combination in plan.ablation
        for trial in result.trials
        if trial.status == "finished" and trial.options | {"seed": 0} == combination.options | {"seed": 0}
    ]
    path = result.folder / ROWS_FILE
    atomic_write(path, rows_to_text(rows))
    parts = dict.fromkeys(part for combination in plan.ablation for part in combination.parts)
    return path, as_markdown(rows, list(parts), context_class)


def stored_table(path: Path, ablation: Ablation, context_class: str = "") -> str:
    """The table of a file of rows, in the order of the ablation's combinations."""
    order = list(ablation.named)
    rows = sorted(
        read_rows(path),
        key=lambda row: order.index(row.combination) if row.combination in order else len(order),
    )
    return as_markdown(rows, list(ablation.parts), context_class)


def rows_to_text(rows: Sequence[AblationRow]) -> str:
    """One line of JSON per row."""
    return "".join(f"{ROW.dump_json(row).decode()}\n" for row in rows)


def read_rows(path: Path) -> list[AblationRow]:
    """Read a file of rows; ValueError with the number of a line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(ROW.validate_json(line))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"{path}, line {number} is no row of an ablation: {reason}") from None
    return rows


def as_markdown(rows: Sequence[AblationRow], parts: Sequence[str], context_class: str = "") -> str:
    """The table, a line per combination in the order of the rows' first appearance.

    The rows are of one recipe and data set. `parts` get columns with a mark where the part is on, a
    `context_class` columns of its share of the coexisting context and of its IoU. Figures are the mean over
    the seeds, with smallest to largest in brackets. ValueError for rows of different images or classes.
    """
    if len({row.image_set for row in rows} - {""}) > 1:
        raise ValueError("the rows are of different images or classes: one table is for one of them")
    measures: dict[str, Callable[[AblationRow], float | None]] = {
        "unfiltered": lambda row: row.miou.get("unfiltered"),
        "unfiltered, CRF": lambda row: row.miou.get("unfiltered_crf"),
        "CAM (true_labels)": lambda row: row.miou.get("cam_true_labels"),
        "auxiliary CAM (true_labels)": lambda row: row.miou.get("aux_cam_true_labels"),
    }
    if context_class:
        measures[f"context as {context_class}"] = lambda row: row.context.get(context_class)
        measures[f"IoU {context_class}"] = lambda row: row.iou.get(context_class)
    lines = [
        [
            name.replace("_", " "),
            *("x" if part in group[0].parts else "" for part in parts),
            *(_spread([measure(row) for row in group]) for measure in measures.values()),
            " ".join(map(str, sorted(row.seed for row in group))),
        ]
        for name, group in grouped(rows, lambda row: row.combination).items()
    ]
    header = ["combination", *(part.replace("_", " ") for part in parts), *measures, "seeds"]
    recipes, datasets, commits = (
        ", ".join(sorted({getattr(row, name) for row in rows})) for name in ("recipe", "dataset", "commit")
    )
    source = f"mIoU and IoU in per cent, {datasets} val; recipe {recipes}; commits {commits}."
    return f"{markdown_table(header, lines)}\n\n{source}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):.1f}"
    return text if len(known) == 1 else f"{text} ({min(known):.1f} to {max(known):.1f})"
