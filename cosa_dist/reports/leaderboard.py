"""The leaderboard: runs ranked by mean IoU on the same classes and images, protocol and evaluation settings.

Numbers that differ in any of these are never ranked against each other, whatever the data set is called. Each
run counts once per protocol, with the better of its two networks. Published results stand beside runs on
their classes and images only, have no rank, and say how they were evaluated.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from cosa_dist.config.schema import NAMED_PROTOCOLS, ONE_VIEW, EvaluationConfig

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
NOT_RECORDED = "images not recorded"
UNKNOWN = "settings not recorded"
AS_MEASURED = "each as measured"
"""in place of one way of evaluation, where published rows differ in it"""
RECORDED = ("recipe", "backbone", "dataset", "split", "steps", "seed", "kind", "supervision")
"""tags that become fields of a row"""

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class RunRecord:
    """What the leaderboard needs of one run, whichever store it comes from.

    `metrics` are the last values, `final/<network>/miou_<protocol>` in per cent; `seconds` go from start to
    end, None while the run goes on (`final/training_seconds`, which leaves interruptions out, counts instead
    if it was recorded); `evaluation` is size, scales and mirroring in words, `crf` the same of the dense CRF.
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

    rank: int | None = None
    run: str = ""
    recipe: str = ""
    network: str = ""
    miou: float = float("nan")
    low: float | None = None
    """start of the mIoU's 95 % interval over the images, None for what is published and for older runs"""
    high: float | None = None
    protocol: str = ""
    dataset: str = "unknown"
    split: str = "val"
    backbone: str = ""
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
    """the same for runs that differ in their seed only"""
    supervision: str = ""
    """what it learned from: image tags, pseudo-masks or true masks; of a published row, what else was used"""
    evaluation: str = ""
    """geometry, scales, mirroring, merging and CRF in words"""
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
        own = "" if self.supervision == "image tags" else self.supervision
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
    def runs(self) -> tuple[Row, ...]:
        """The rows that are not published results."""
        return tuple(row for row in self.rows if not row.published)

    @property
    def names(self) -> set[str]:
        """All names of what its runs were evaluated on, in small letters."""
        named = {f"{row.dataset} {row.split}" for row in self.runs} | {f"{self.dataset} {self.split}"}
        return {name.casefold() for name in named}

    @property
    def seed_groups(self) -> list[list[Row]]:
        """Runs that differ in their seed only, by seed; best mean first.

        An older run that has no options recorded goes by recipe, backbone and steps.
        """
        groups = grouped(self.runs, lambda row: (row.recipe, row.backbone, row.steps, row.kind, row.digest))
        by_seed = [sorted(group, key=_seed_order) for group in groups.values()]
        return sorted(by_seed, key=lambda group: -mean(row.miou for row in group))


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, both in the order of their first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _read_published() -> tuple[Row, ...]:
    """Published results on VOC 2012 and COCO 2014, under the protocol that each was measured with.

    The headline numbers of the single-stage methods are after a dense CRF (`unfiltered_crf`), each with
    sizes, scales and merging of its own: `evaluation` is a named protocol, or words where none is meant. The
    released CoSA evaluation removes the classes that are not among the true labels of the image
    (`true_labels`, `true_labels_crf`). `server` is VOC's test server,
    `val_part` the 5,000 images of COCO val that are used while training. `unstated`: the protocol could
    not be read from paper or code; such a row stands beside no run. `verified` is False for a figure that
    was not seen at its source but in other papers' tables.
    """
    rows = []
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            dataset, split = line["benchmark"].split(" ", 1)
            values: dict[str, Any] = line | {"dataset": dataset, "split": split, "status": "published"}
            values |= {"evaluation": _published_evaluation(line["evaluation"], line["protocol"])}
            values |= {"miou": float(line["miou"]), "year": int(line["year"])}
            rows.append(Row(**values | {"verified": line["verified"] == "True"}))
    return tuple(rows)


def _published_evaluation(text: str, protocol: str) -> str:
    """The text as it stands, or the settings of the named protocol that it is, in words as for runs."""
    if text not in NAMED_PROTOCOLS:
        return text
    config = EvaluationConfig.model_validate({"protocol": text})
    return ", ".join([config.words, config.crf.words] if protocol.endswith("_crf") else [config.words])


PUBLISHED = _read_published()


def leaderboard(
    runs: Iterable[RunRecord],
    *,
    dataset: str = "",
    protocol: str = "",
    recipe: str = "",
    backbone: str = "",
    with_published: bool = True,
) -> list[Table]:
    """Rank runs; those without final metrics are left out.

    `dataset` chooses data sets of this name and those that have the same images, `protocol` one protocol (the
    CAM control belongs to `predicted_labels`), `recipe` the runs of a recipe, `backbone` runs and published
    results that have it in their name; `with_published` adds published results, also of data sets without any
    run. Returns one table for each set of images, protocol and way of evaluation: first those with runs, VOC
    and COCO before others, then those of published results that no run stands beside.
    """
    rows = [row for run in runs for row in rows_of(run) if recipe in ("", row.recipe)]
    tables = [table for same in grouped(rows, _images).values() for table in _tables(same)]
    if with_published:
        tables = _with_published(tables)
    shown = [
        replace(table, rows=_ranked(kept))
        for table in tables
        if (kept := [row for row in table.rows if backbone.casefold() in row.backbone.casefold()])
        and dataset.casefold() in ("", table.dataset.casefold(), *(r.dataset.casefold() for r in table.rows))
        and protocol in ("", table.protocol, table.protocol.split(" ")[0])
    ]
    return sorted(_told_apart(shown), key=_order)


def _images(row: Row) -> tuple[str, str]:
    """What was evaluated: a digest, or for runs of an earlier version the split's digest and name."""
    recorded = row.images is not None and row.image_set
    return row.image_set, "" if recorded else f"{row.dataset} {row.split}"


def _tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of runs on the same images, by protocol and evaluation."""
    first = rows[0]
    dataset, _, split = first.benchmark.partition(" ")
    if not first.benchmark:
        dataset, split = (
            " / ".join(sorted({getattr(row, part) for row in rows})) for part in ("dataset", "split")
        )
    facts = f"{first.images:,} images" if first.images is not None and first.image_set else NOT_RECORDED
    return [
        Table(dataset, split, protocol, tuple(group), evaluation, facts)
        for (protocol, evaluation), group in grouped(rows, lambda r: (r.protocol, r.evaluation)).items()
    ]


def _with_published(tables: Sequence[Table]) -> list[Table]:
    """The tables with the published rows of their benchmark and protocol, and tables of the others."""

    def stands_beside(row: Row, table: Table) -> bool:
        own = (table.rows[0].benchmark, table.protocol, table.evaluation)
        return own == (row.benchmark, row.protocol, row.evaluation)

    own = [
        replace(table, rows=(*table.rows, *(row for row in PUBLISHED if stands_beside(row, table))))
        for table in tables
    ]
    alone = [row for row in PUBLISHED if not any(stands_beside(row, table) for table in tables)]
    by_place = grouped(alone, lambda r: (r.dataset, r.split, r.protocol, ONE_VIEW in r.evaluation))
    for (dataset, split, protocol, one_view), rows in by_place.items():
        different = len({row.evaluation for row in rows}) > 1
        each = f"{ONE_VIEW}, {AS_MEASURED}" if one_view else AS_MEASURED
        evaluation = each if different else rows[0].evaluation
        own.append(Table(dataset, split, protocol, tuple(rows), evaluation))
    return own


def _told_apart(tables: Sequence[Table]) -> list[Table]:
    """Give runs' tables that share a name, but not the images, their number of classes and a digest."""
    with_runs = [table for table in tables if table.runs]
    known = {table.runs[0].benchmark for table in with_runs}
    sets = {
        (name, table.runs[0].images is None, _images(table.runs[0]))
        for table in with_runs
        for name in table.names
    }
    sets |= {
        (row.benchmark.casefold(), False, ("", row.benchmark))
        for row in PUBLISHED
        if row.benchmark not in known
    }
    by_name = grouped(sets, lambda entry: entry[:2])
    told = []
    for table in tables:
        first = next(iter(table.runs), Row())
        if first.image_set and any(len(by_name[name, first.images is None]) > 1 for name in table.names):
            classes = f"{first.classes} classes, " if first.classes is not None else ""
            table = replace(table, facts=f"{classes}{table.facts}, set {first.image_set[:8]}")
        told.append(table)
    return told


def rows_of(run: RunRecord) -> list[Row]:
    """Lines of one run: the better network under each protocol, and the CAM control if measured.

    A control run has no trained segmentation, so its CAM is its only line.
    """
    trained = () if run.tags.get("kind") == "control" else PROTOCOLS
    measures = {protocol: f"miou_{protocol}" for protocol in trained}
    rows = []
    for protocol, measure in (measures | {CAM_CONTROL: "cam_control_predicted_labels"}).items():
        found = {name: run.metrics.get(f"final/{name}/{measure}") for name in NETWORKS}
        scores = {name: score for name, score in found.items() if score is not None}
        if scores:
            network = max(scores, key=lambda name: _comparable(scores[name]))
            rows.append(_row(run, f"final/{network}/{measure}", scores[network], protocol))
    return rows


def without_result(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that are in no table because they have no final metrics (yet)."""
    return [run for run in runs if not rows_of(run) and run.tags.get("kind") not in PARENTS]


def _row(run: RunRecord, metric: str, miou: float, protocol: str) -> Row:
    tags, metrics = run.tags, run.metrics
    recorded: dict[str, Any] = {name: tags[name] for name in RECORDED if name in tags}
    commit, dirty, _ = tags.get("git_commit", "").partition("-dirty")
    cpus = tags.get("cpu_count", "")
    # Pseudo-masks are made with the method's own settings.
    evaluation = (run.evaluation, run.crf if protocol.endswith("_crf") else "")
    return Row(
        run=run.name,
        network=metric.split("/")[1],
        miou=miou,
        low=metrics.get(f"{metric}_low"),
        high=metrics.get(f"{metric}_high"),
        protocol=protocol,
        images_per_second=metrics.get("final/images_per_second", metrics.get("train/images_per_second")),
        seconds=metrics.get("final/training_seconds", run.seconds),
        commit=commit[:10] + dirty,
        status=run.status.lower(),
        run_id=run.run_id,
        source=run.experiment,
        hardware=tags.get("gpus") or (f"{cpus} CPUs" if cpus else ""),
        digest=run.digest,
        evaluation="" if protocol == "pseudo_masks" else ", ".join(part for part in evaluation if part),
        image_set=tags.get("image_set") or tags.get("data_fingerprint_val", "").rpartition(":")[2],
        benchmark=tags.get("benchmark", "") if tags.get("image_set") else "",
        images=_count(tags, "evaluated_images"),
        classes=_count(tags, "classes"),
        **recorded,
    )


def _count(tags: Mapping[str, str], name: str) -> int | None:
    text = tags.get(name, "")
    return int(text) if text.isdigit() else None


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows by falling mean IoU; only runs are counted, a score that is not a number comes last."""
    ranked = []
    rank = 0
    for row in sorted(rows, key=lambda row: (-_comparable(row.miou), row.published, row.run)):
        rank += not row.published
        ranked.append(row if row.published else replace(row, rank=rank))
    return tuple(ranked)


def _order(table: Table) -> tuple[Any, ...]:
    name = table.dataset.casefold()
    place = {"voc": 0, "coco": 1}.get(name, 2)
    protocols = (*PROTOCOLS[:2], CAM_CONTROL, *PROTOCOLS[2:], *PUBLISHED_ONLY)
    split = (not table.split.startswith("val"), table.split)
    facts = (NOT_RECORDED in table.facts, table.facts)
    return not table.runs, place, name, *split, *facts, protocols.index(table.protocol), table.evaluation


def _comparable(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _seed_order(row: Row) -> tuple[float, str, str]:
    return int(row.seed) if row.seed.isdigit() else math.inf, row.seed, row.run
