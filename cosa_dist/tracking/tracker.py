"""What the training loop knows of experiment tracking: one small interface.

The loop logs to a `Tracker` and knows neither files nor MLflow. `CombinedTracker` writes to the
local mirror first and to MLflow second, with one time stamp for both, so that a later replay of
the mirror finds out what the server already has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Status = Literal["FINISHED", "FAILED", "KILLED"]

log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """Where a run's numbers go; only rank 0 holds one that writes."""

    @property
    def run_id(self) -> str:
        """Identity of the run in the tracking store, empty if there is none."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Record numbers of one step; `time_ms` is the Unix time in ms, now by default."""

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record settings that stay the same for the whole run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record labels of the run; a later value replaces an earlier one."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file under `folder` of the run's artifacts."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record a table, one mapping per row, as `tables/<name>.json`."""

    def flush(self) -> None:
        """Hand over what is buffered, without waiting long for a store that does not answer."""

    def close(self, status: Status = "FINISHED") -> None:
        """Flush and end the run with a status; later calls do nothing."""


class NullTracker:
    """Records nothing: ranks above 0 and plain tests."""

    run_id = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Do nothing."""

    def log_params(self, params: Mapping[str, str]) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self, status: Status = "FINISHED") -> None:
        """Do nothing."""


class CombinedTracker:
    """Hands everything to several trackers, the local mirror first.

    After a crash, training repeats the steps since the last checkpoint. If the first tracker can
    tell what an earlier session recorded (`unseen`), repeated points reach none of the trackers.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    @property
    def run_id(self) -> str:
        """Identity of the run: the first one that a tracker knows."""
        return next((tracker.run_id for tracker in self.trackers if tracker.run_id), "")

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Record numbers of one step everywhere, with the same time stamp."""
        stamp = int(time.time() * 1000) if time_ms is None else time_ms
        unseen = getattr(self.trackers[0], "unseen", None) if self.trackers else None
        fresh = dict(metrics) if unseen is None else unseen(metrics, step)
        if fresh:
            for tracker in self.trackers:
                tracker.log_metrics(fresh, step, time_ms=stamp)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record settings everywhere."""
        for tracker in self.trackers:
            tracker.log_params(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record labels everywhere."""
        for tracker in self.trackers:
            tracker.set_tags(tags)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file everywhere."""
        for tracker in self.trackers:
            tracker.log_artifact(path, folder)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record a table everywhere."""
        for tracker in self.trackers:
            tracker.log_table(rows, name)

    def flush(self) -> None:
        """Flush every tracker."""
        for tracker in self.trackers:
            tracker.flush()

    def close(self, status: Status = "FINISHED") -> None:
        """Close every tracker, also when one of them fails."""
        for tracker in self.trackers:
            try:
                tracker.close(status)
            except Exception:
                log.exception("tracking: closing %s failed", type(tracker).__name__)
