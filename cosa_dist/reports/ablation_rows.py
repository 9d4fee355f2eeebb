"""One line of JSON per finished run of an ablation, and the Markdown table made from them.

Lines are appended whole, so several processes may share a file and a killed one leaves no half of a line that
counts. The table gives mean and range over the seeds and names protocol, data set, recipe and commits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from cosa_dist.evaluation.report import EvalReport
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


def make_row(
    combination: str,
    parts: Sequence[str],
    report: EvalReport,
    *,
    seed: int,
    recipe: str,
    dataset: str,
    commit: str,
    seconds: float,
    segments: bool = True,
) -> AblationRow:
    """The row of a finished run from the report of its better network.

    `segments` is false for a run that trained classifiers only: the scores of its segmentation mean nothing
    and stay out.
    """
    names = ("background", *report.class_names)
    score = report.scores["unfiltered"]
    context = segments and score.context_as_class
    return AblationRow(
        combination=combination,
        parts=tuple(parts),
        seed=seed,
        recipe=recipe,
        dataset=dataset,
        commit=commit,
        network=report.network,
        miou={key: score.miou for key, score in report.scores.items() if segments or "cam" in key},
        iou=dict(zip(names, score.iou, strict=True)) if segments else {},
        context=dict(zip(names, context, strict=True)) if context else {},
        seconds=seconds,
        image_set=report.image_set,
    )


def append_row(path: Path, row: AblationRow) -> None:
    """Add a row in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(row)) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path: Path) -> list[AblationRow]:
    """Read all rows; none if there is no file.

    Raises:
        ValueError: a line that is no row, with its number.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            rows.append(AblationRow(**{**values, "parts": tuple(values["parts"])}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is no row of an ablation: {error}") from None
    return rows


def as_markdown(rows: Sequence[AblationRow], parts: Sequence[str], context_class: str = "") -> str:
    """The table, a line per combination in the order of the rows' first appearance.

    Args:
        rows: of one recipe and data set.
        parts: columns with a mark where the part is on.
        context_class: class whose share of the coexisting context and whose IoU get columns.

    Returns:
        Markdown; figures are the mean over the seeds, with smallest to largest in brackets.

    Raises:
        ValueError: the rows are of different images or classes.
    """
    if len({row.image_set for row in rows} - {""}) > 1:
        raise ValueError("the rows are of different images or classes: one table is for one of them")
    measures = {
        "unfiltered": lambda row: row.miou.get("unfiltered"),
        "unfiltered, CRF": lambda row: row.miou.get("unfiltered_crf"),
        "CAM (true_labels)": lambda row: row.miou.get("cam_true_labels"),
        "auxiliary CAM (true_labels)": lambda row: row.miou.get("aux_cam_true_labels"),
    }
    if context_class:
        measures[f"context as {context_class}"] = lambda row: row.context.get(context_class)
        measures[f"IoU {context_class}"] = lambda row: row.iou.get(context_class)
    grouped: dict[str, list[AblationRow]] = {}
    for row in rows:
        grouped.setdefault(row.combination, []).append(row)
    header = ["combination", *(part.replace("_", " ") for part in parts), *measures, "seeds"]
    lines = []
    for name, group in grouped.items():
        marks = ["x" if part in group[0].parts else "" for part in parts]
        figures = [_spread([measure(row) for row in group]) for measure in measures.values()]
        seeds = " ".join(str(row.seed) for row in sorted(group, key=lambda row: row.seed))
        lines.append([name.replace("_", " "), *marks, *figures, seeds])
    return "\n".join([markdown_table(header, lines), "", _source(rows)])


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):.1f}"
    return text if len(known) == 1 else f"{text} ({min(known):.1f} to {max(known):.1f})"


def _source(rows: Sequence[AblationRow]) -> str:
    """What the figures are of."""
    recipes, datasets, commits = (
        ", ".join(sorted({getattr(row, field) for row in rows})) for field in ("recipe", "dataset", "commit")
    )
    return f"mIoU and IoU in per cent, {datasets} val; recipe {recipes}; commits {commits}."
