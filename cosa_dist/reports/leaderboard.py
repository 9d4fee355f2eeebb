"""The leaderboard: runs ranked by mean IoU on the same classes and images, protocol and evaluation settings.

Numbers that differ in any of these are never ranked against each other, whatever the data set is called.
Each run counts once per protocol, with the better of its two networks. Published results stand beside runs on
their classes and images only, have no rank, and say how they were evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cosa_dist.reports.published import PUBLISHED, PublishedResult
from cosa_dist.tracking.evaluation_text import ONE_VIEW, UNKNOWN

NETWORKS = ("online", "assignment", "average")
PROTOCOLS = (
    "unfiltered",
    "predicted_labels",
    "true_labels",
    "unfiltered_crf",
    "true_labels_crf",
    "pseudo_masks",
)
PUBLISHED_ONLY = ("server", "unstated")
"""protocols of published rows that no run has"""
PARENTS = ("sweep", "stages")
"""kinds of runs that hold others and have no result of their own"""
CAM_CONTROL = "predicted_labels (CAM control)"
SPEED_METRICS = ("final/images_per_second", "train/images_per_second")
TRAINING_SECONDS = "final/training_seconds"
NOT_RECORDED = "images not recorded"


@dataclass(frozen=True)
class RunRecord:
    """What the leaderboard needs of one run, whichever store it comes from.

    Attributes:
        metrics: last value of each metric; `final/<network>/miou_<protocol>` in per cent.
        tags: dataset, split, recipe, backbone, seed, steps, git_commit, kind; of the evaluation: image_set,
            benchmark, evaluated_images, classes.
        seconds: from start to end, None while the run goes on; `final/training_seconds`, which
            leaves interruptions out, counts instead if it was recorded.
        digest: the same for runs that differ in their seed only.
        evaluation: size, scales and mirroring in words.
        crf: the same of the dense CRF.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    digest: str = ""
    evaluation: str = ""
    crf: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard; `miou` in per cent, `rank` None for what is published."""

    rank: int | None
    run: str
    recipe: str
    network: str
    miou: float
    protocol: str
    dataset: str
    split: str
    backbone: str
    steps: str = ""
    seed: str = ""
    images_per_second: float | None = None
    seconds: float | None = None
    commit: str = ""
    status: str = ""
    kind: str = ""
    run_id: str = ""
    source: str = ""
    hardware: str = ""
    digest: str = ""
    supervision: str = ""
    """what it learned from: image tags, pseudo-masks or true masks; of published rows, what else was used"""
    evaluation: str = ""
    """size, scales, mirroring and CRF"""
    image_set: str = ""
    """digest of the classes and evaluated images; of an older run, of its whole split; else empty"""
    benchmark: str = ""
    """the set of the field that these are, e.g. `VOC val`"""
    images: int | None = None
    classes: int | None = None
    year: int | None = None
    verified: bool = True

    @property
    def note(self) -> str:
        """What sets a run apart from CoSA on image tags; empty for that."""
        if self.kind == "control":
            return "control"
        own = "" if self.supervision in ("", "image tags") else self.supervision
        return ", ".join(part for part in (own, "" if self.verified else "not verified") if part)

    @property
    def published(self) -> bool:
        """Whether this is a result from the literature."""
        return self.status == "published"


@dataclass(frozen=True)
class Table:
    """The ranking of one set of images, protocol and way of evaluation.

    `facts` tells data sets of one name apart: images, and where needed classes and digest.
    """

    dataset: str
    split: str
    protocol: str
    rows: tuple[Row, ...]
    evaluation: str = ""
    facts: str = ""

    @property
    def title(self) -> str:
        """Heading, e.g. `VOC val (1,449 images), unfiltered, 448 square, 5 scales + mirror`."""
        name = f"{self.dataset} {self.split}" + (f" ({self.facts})" if self.facts else "")
        protocol = "unstated protocol: not comparable" if self.protocol == "unstated" else self.protocol
        return ", ".join(part for part in (name, protocol, self.evaluation) if part)

    @property
    def has_runs(self) -> bool:
        """Whether there is more than published rows."""
        return not all(row.published for row in self.rows)


@dataclass(frozen=True)
class _Images:
    """What was evaluated: a digest, or for runs of an earlier version the split's digest and name."""

    digest: str
    name: str = ""


def leaderboard(
    runs: Iterable[RunRecord],
    *,
    dataset: str = "",
    protocol: str = "",
    recipe: str = "",
    backbone: str = "",
    with_published: bool = True,
) -> list[Table]:
    """Rank runs.

    Args:
        runs: any runs; those without final metrics are left out.
        dataset: only data sets of this name, and those that have the same images.
        protocol: only this protocol (the CAM control belongs to `predicted_labels`).
        recipe: only runs of this recipe.
        backbone: only runs, and published results, whose backbone has this in its name.
        with_published: add published results, also of data sets without any run.

    Returns:
        One table for each set of images, protocol and way of evaluation: first those with runs, VOC and COCO
        before others, then those of published results that no run stands beside.
    """
    by_images: dict[_Images, list[Row]] = {}
    for run in runs:
        for row in rows_of(run):
            if recipe in ("", row.recipe):
                by_images.setdefault(_images_of(row), []).append(row)
    tables = [table for rows in by_images.values() for table in _tables(rows)]
    if with_published:
        tables = _with_published(tables)
    names = {
        table: {table.dataset.casefold(), *(row.dataset.casefold() for row in table.rows)} for table in tables
    }
    shown = [
        replace(table, rows=_ranked(rows))
        for table in tables
        if (rows := [row for row in table.rows if backbone.casefold() in row.backbone.casefold()])
        and (not dataset or dataset.casefold() in names[table])
        and protocol in ("", table.protocol, table.protocol.split(" ")[0])
    ]
    return sorted(_told_apart(shown), key=_order)


def _images_of(row: Row) -> _Images:
    if row.images is not None and row.image_set:
        return _Images(row.image_set)
    return _Images(row.image_set, f"{row.dataset} {row.split}")


def _tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of runs on the same images, by protocol and evaluation."""
    first = rows[0]
    if first.benchmark:
        dataset, _, split = first.benchmark.partition(" ")
    else:
        dataset, split = (
            " / ".join(sorted({getattr(row, part) for row in rows})) for part in ("dataset", "split")
        )
    facts = f"{first.images:,} images" if first.images is not None and first.image_set else NOT_RECORDED
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.evaluation), []).append(row)
    return [
        Table(dataset, split, protocol, tuple(group), evaluation, facts)
        for (protocol, evaluation), group in groups.items()
    ]


def _with_published(tables: Sequence[Table]) -> list[Table]:
    """The tables with the published rows of their benchmark and protocol, and tables of the others."""
    beside: dict[Table, list[Row]] = {}
    alone: dict[tuple[str, str, str, str], list[Row]] = {}
    for result in PUBLISHED:
        row = _published_row(result)
        places = [
            table
            for table in tables
            if (table.rows[0].benchmark, table.protocol) == (row.benchmark, row.protocol)
            and (ONE_VIEW in table.evaluation) == result.one_view
            and UNKNOWN not in table.evaluation
        ]
        for table in places:
            beside.setdefault(table, []).append(row)
        if not places:
            key = (row.dataset, row.split, row.protocol, ONE_VIEW if result.one_view else "")
            alone.setdefault(key, []).append(row)
    own = [replace(table, rows=(*table.rows, *beside.get(table, ()))) for table in tables]
    return own + [Table(*key[:3], tuple(rows), key[3]) for key, rows in alone.items()]


def _told_apart(tables: Sequence[Table]) -> list[Table]:
    """Give runs' tables that share a name, but not the images, their number of classes and a digest."""
    own = {table: [row for row in table.rows if not row.published] for table in tables if table.has_runs}
    sets: dict[tuple[str, bool], set[_Images]] = {}
    for table, rows in own.items():
        for name in _names(table, rows):
            sets.setdefault((name, rows[0].images is None), set()).add(_images_of(rows[0]))
    known = {rows[0].benchmark for rows in own.values()}
    for name in {f"{result.dataset} {result.split}" for result in PUBLISHED} - known:
        sets.setdefault((name.casefold(), False), set()).add(_Images("", name))
    told = {}
    for table, rows in own.items():
        row = rows[0]
        shared = any(len(sets[name, row.images is None]) > 1 for name in _names(table, rows))
        if shared and row.image_set:
            classes = f"{row.classes} classes, " if row.classes is not None else ""
            told[table] = f"{classes}{table.facts}, set {row.image_set[:8]}"
    return [replace(table, facts=told.get(table, table.facts)) for table in tables]


def _names(table: Table, rows: Iterable[Row]) -> set[str]:
    """All names of what a table's runs were evaluated on, in small letters."""
    heading = f"{table.dataset} {table.split}".casefold()
    return {heading, *(f"{row.dataset} {row.split}".casefold() for row in rows)}


def rows_of(run: RunRecord) -> list[Row]:
    """Lines of one run: the better network under each protocol, and the CAM control if measured.

    A control run has no trained segmentation, so its CAM is its only line.
    """
    trained = () if run.tags.get("kind") == "control" else PROTOCOLS
    measures = {protocol: f"miou_{protocol}" for protocol in trained}
    measures[CAM_CONTROL] = "cam_control_predicted_labels"
    rows = []
    for protocol, measure in measures.items():
        scores = {
            network: run.metrics[f"final/{network}/{measure}"]
            for network in NETWORKS
            if f"final/{network}/{measure}" in run.metrics
        }
        if scores:
            network = max(scores, key=lambda name: _comparable(scores[name]))
            rows.append(_row(run, network, scores[network], protocol))
    return rows


def without_result(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that are in no table because they have no final metrics (yet)."""
    return [run for run in runs if not rows_of(run) and run.tags.get("kind") not in PARENTS]


def _row(run: RunRecord, network: str, miou: float, protocol: str) -> Row:
    tags = run.tags
    speed = next((run.metrics[name] for name in SPEED_METRICS if name in run.metrics), None)
    return Row(
        rank=None,
        run=run.name,
        recipe=tags.get("recipe", ""),
        network=network,
        miou=miou,
        protocol=protocol,
        dataset=tags.get("dataset", "unknown"),
        split=tags.get("split", "val"),
        backbone=tags.get("backbone", ""),
        steps=tags.get("steps", ""),
        seed=tags.get("seed", ""),
        images_per_second=speed,
        seconds=run.metrics.get(TRAINING_SECONDS, run.seconds),
        commit=_short(tags.get("git_commit", "")),
        status=run.status.lower(),
        kind=tags.get("kind", ""),
        run_id=run.run_id,
        source=run.experiment,
        hardware=_hardware(tags),
        digest=run.digest,
        supervision=tags.get("supervision", ""),
        evaluation=_evaluation(run, protocol),
        image_set=tags.get("image_set") or tags.get("data_fingerprint_val", "").rpartition(":")[2],
        benchmark=tags.get("benchmark", "") if tags.get("image_set") else "",
        images=_count(tags, "evaluated_images"),
        classes=_count(tags, "classes"),
    )


def _evaluation(run: RunRecord, protocol: str) -> str:
    """The settings that a score under a protocol depends on; those of pseudo-masks are the method's."""
    if protocol == "pseudo_masks":
        return ""
    parts = (run.evaluation, run.crf if protocol.endswith("_crf") else "")
    return ", ".join(part for part in parts if part)


def _count(tags: Mapping[str, str], name: str) -> int | None:
    text = tags.get(name, "")
    return int(text) if text.isdigit() else None


def _published_row(result: PublishedResult) -> Row:
    return Row(
        rank=None,
        run=result.method,
        recipe=result.stages,
        network="",
        miou=result.miou,
        protocol=result.protocol,
        dataset=result.dataset,
        split=result.split,
        backbone=result.backbone,
        status="published",
        source=result.source,
        supervision=result.supervision,
        evaluation=result.evaluation,
        benchmark=f"{result.dataset} {result.split}",
        year=result.year,
        verified=result.verified,
    )


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows by falling mean IoU; only runs are counted, a score that is not a number comes last."""
    ranked = []
    rank = 0
    for row in sorted(rows, key=lambda row: (-_comparable(row.miou), row.published, row.run)):
        rank += not row.published
        ranked.append(row if row.published else replace(row, rank=rank))
    return tuple(ranked)


def _order(table: Table) -> tuple[Any, ...]:
    names = ("voc", "coco")
    name = table.dataset.casefold()
    place = names.index(name) if name in names else len(names)
    protocols = (*PROTOCOLS[:2], CAM_CONTROL, *PROTOCOLS[2:], *PUBLISHED_ONLY)
    protocol = protocols.index(table.protocol)
    split = (not table.split.startswith("val"), table.split)
    facts = (NOT_RECORDED in table.facts, table.facts)
    return not table.has_runs, place, name, *split, *facts, protocol, table.evaluation


def _comparable(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _hardware(tags: Mapping[str, str]) -> str:
    """GPUs in words, or the number of CPUs."""
    gpus, cpus = tags.get("gpus", ""), tags.get("cpu_count", "")
    return gpus or (f"{cpus} CPUs" if cpus else "")


def _short(commit: str) -> str:
    """The first 10 characters of a commit, with its `-dirty` mark."""
    head, mark, _ = commit.partition("-dirty")
    return head[:10] + mark
