"""Runs that differ in their seed only, as one line: mean, range and number of seeds.

Two runs belong together if all their options but seed, name, places and workers are the same; an older run
that has no options recorded goes by recipe, backbone and steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from cosa_dist.reports.leaderboard import Row, Table

NOT_THE_EXPERIMENT = (
    "seed",
    "name",
    "output",
    "data.shards",
    "data.cache",
    "data.loader_workers",
    "tracking.",
    "distributed.",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "evaluation.pictures",
    "model.weights",
)
"""Options and sections that do not make another experiment; weights count by their file's name."""


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one experiment in one table, best mean first."""

    rows: tuple[Row, ...]
    """by seed"""

    @property
    def mean(self) -> float:
        """Mean mIoU in per cent."""
        return mean(row.miou for row in self.rows)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest mIoU."""
        scores = [row.miou for row in self.rows]
        return min(scores), max(scores)

    @property
    def seeds(self) -> str:
        """The seeds in words, e.g. `0 1 2`."""
        return " ".join(row.seed for row in self.rows if row.seed)

    @property
    def seconds(self) -> float | None:
        """Mean training time, None if no run has one."""
        known = [row.seconds for row in self.rows if row.seconds is not None]
        return mean(known) if known else None


def experiment_digest(params: Mapping[str, str], training_data: str = "") -> str:
    """Short name of the options and the training data that make the experiment; empty without any option."""
    kept = {
        key: value
        for key, value in params.items()
        if not any(
            key == name or (name.endswith(".") and key.startswith(name)) for name in NOT_THE_EXPERIMENT
        )
    }
    if not kept:
        return ""
    kept["weights"] = params.get("model.weights", "").replace("\\", "/").rsplit("/", 1)[-1]
    if training_data:
        kept["training data"] = training_data
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def group_seeds(table: Table) -> list[SeedGroup]:
    """Runs of a table grouped by experiment, best mean first; published rows are left out."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in table.rows:
        if not row.published:
            key = (row.recipe, row.backbone, row.steps, row.kind, row.digest)
            groups.setdefault(key, []).append(row)
    made = (SeedGroup(tuple(sorted(rows, key=_by_seed))) for rows in groups.values())
    return sorted(made, key=lambda group: -group.mean)


def all_groups(tables: Iterable[Table]) -> list[tuple[Table, Sequence[SeedGroup]]]:
    """Every table with its groups; tables without a run are left out."""
    return [(table, groups) for table in tables if (groups := group_seeds(table))]


def _by_seed(row: Row) -> tuple[int, str, str]:
    return (int(row.seed) if row.seed.isdigit() else 1 << 31, row.seed, row.run)
