"""The leaderboard: runs ranked by mean IoU within one data set and one protocol.

Numbers of different data sets or protocols are never ranked against each other. Each run counts once
per protocol, with the better of its two networks. Published results stand beside the runs, in their own
data set only, and have no rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cosa_dist.tracking.published import PublishedResult, published_results

NETWORKS = ("online", "assignment", "average")
PROTOCOLS = (
    "unfiltered",
    "predicted_labels",
    "true_labels",
    "unfiltered_crf",
    "true_labels_crf",
    "pseudo_masks",
)
PARENTS = ("sweep", "stages")
"""kinds of runs that hold others and have no result of their own"""
CAM_CONTROL = "predicted_labels (CAM control)"
SPEED_METRICS = ("final/images_per_second", "train/images_per_second")
TRAINING_SECONDS = "final/training_seconds"


@dataclass(frozen=True)
class RunRecord:
    """What the leaderboard needs of one run, whichever store it comes from.

    Attributes:
        metrics: last value of each metric; `final/<network>/miou_<protocol>` in per cent.
        tags: dataset, split, recipe, backbone, seed, steps, git_commit, kind.
        seconds: from start to end, None while the run goes on; `final/training_seconds`, which
            leaves interruptions out, counts instead if it was recorded.
        digest: the same for runs that differ in their seed only.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    digest: str = ""


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
    """what it learned from: image tags, pseudo-masks or true masks"""

    @property
    def note(self) -> str:
        """What sets a run apart from CoSA on image tags; empty for that."""
        if self.kind == "control":
            return "control"
        return "" if self.supervision in ("", "image tags") else self.supervision

    @property
    def published(self) -> bool:
        """Whether this is a result from the literature."""
        return self.status == "published"


@dataclass(frozen=True)
class Table:
    """The ranking of one data set, split and protocol."""

    dataset: str
    split: str
    protocol: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Heading, e.g. `VOC val, unfiltered`."""
        return f"{self.dataset} {self.split}, {self.protocol}"


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
        dataset: only this data set.
        protocol: only this protocol (the CAM control belongs to `predicted_labels`).
        recipe: only runs of this recipe.
        backbone: only runs, and published results, whose backbone has this in its name.
        with_published: add published results, also of data sets without any run.

    Returns:
        One table for each data set, split and protocol, VOC and COCO first.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for run in runs:
        for row in rows_of(run):
            if recipe in ("", row.recipe):
                groups.setdefault((row.dataset, row.split, row.protocol), []).append(row)
    if with_published:
        for name in ("VOC", "COCO"):
            for result in published_results(name):
                shown_in = "unfiltered" if result.protocol == "unstated" else result.protocol
                key = (_existing(groups, name), result.split, shown_in)
                groups.setdefault(key, []).append(_published_row(result))
    shown = {
        key: [row for row in rows if backbone.casefold() in row.backbone.casefold()]
        for key, rows in groups.items()
        if dataset.casefold() in ("", key[0].casefold()) and protocol in ("", key[2], key[2].split(" ")[0])
    }
    return [Table(*key, _ranked(shown[key])) for key in sorted(shown, key=_order) if shown[key]]


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
    )


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
    )


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows by falling mean IoU; only runs are counted, a score that is not a number comes last."""
    ranked = []
    rank = 0
    for row in sorted(rows, key=lambda row: (-_comparable(row.miou), row.published, row.run)):
        rank += not row.published
        ranked.append(row if row.published else replace(row, rank=rank))
    return tuple(ranked)


def _existing(groups: Iterable[tuple[str, str, str]], name: str) -> str:
    """The spelling that the runs use for a data set (`voc` or `VOC`)."""
    return next((key[0] for key in groups if key[0].casefold() == name.casefold()), name)


def _order(key: tuple[str, str, str]) -> tuple[int, str, str, int]:
    dataset, split, protocol = key
    names = ("voc", "coco")
    place = names.index(dataset.casefold()) if dataset.casefold() in names else len(names)
    protocols = (*PROTOCOLS[:2], CAM_CONTROL, *PROTOCOLS[2:])
    return place, dataset, split, protocols.index(protocol)


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
