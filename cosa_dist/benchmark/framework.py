"""What the frameworks around the method take of a step: Accelerate and tracking.

Accelerate's calls are timed inside the step. A line of log is timed by itself, with the tracker of a training
(local mirror and MLflow on SQLite, which is written in the background), and divided by the steps between two
lines. Ray has no row, as nothing is measured of it: the loop calls it at evaluations only, not within a step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from cosa_dist.benchmark.report import Row, Table
from cosa_dist.config.schema import RunConfig
from cosa_dist.tracking.mlflow_runs import create_run
from cosa_dist.tracking.mlflow_tracker import open_tracker
from cosa_dist.tracking.store import prepare_store

METRICS_OF_A_LINE = 14


def line_seconds(lines: int = 20, mlflow: bool = True) -> float:
    """Median seconds that the loop waits for one line of log.

    Args:
        lines: how many are written.
        mlflow: also to an MLflow store of its own, not only to the local mirror.
    """
    metrics = {f"train/term_{index}": 0.1 * index for index in range(METRICS_OF_A_LINE)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = prepare_store(None, folder) if mlflow else ""
        run_id = create_run(uri, "benchmark", "lines of log", params={}, tags={}) if mlflow else ""
        tracker = open_tracker(folder, uri, run_id)
        seconds = []
        try:
            for step in range(lines):
                started = time.perf_counter()
                tracker.log_metrics(metrics, step)
                seconds.append(time.perf_counter() - started)
        finally:
            tracker.close("FINISHED")
    return statistics.median(seconds)


def framework_table(parts: dict[str, dict[str, float]], config: RunConfig, line: float) -> Table:
    """Seconds and shares of a step by framework.

    Args:
        parts: seconds by part of the step, by phase.
        config: how often a line of log is written.
        line: seconds of a line of log.
    """
    rows: list[Row] = []
    for phase, found in parts.items():
        whole = sum(found.values())
        seconds = {
            "Accelerate": found.get("Accelerate", 0.0),
            "tracking": line / config.training.log_every,
        }
        seconds["together"] = sum(seconds.values())
        for name, spent in seconds.items():
            rows.append({"phase": phase, "calls of": name, "s per step": spent, "%": 100 * spent / whole})
    return Table("calls of the frameworks within a step", rows)
