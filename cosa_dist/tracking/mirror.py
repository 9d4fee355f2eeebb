"""The local mirror of a run, read: `<run folder>/metrics.jsonl` and the JSON files beside it.

One line per call, `{"time_ms": ..., "step": ..., "metrics": {...}}`; a line that a crash cut in half is
skipped. Values that JSON has no word for are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

METRICS_FILE = "metrics.jsonl"
TAGS_FILE = "tags.json"
ARTIFACTS_FILE = "artifacts.json"


@dataclass(frozen=True)
class MetricLine:
    """One line of the mirror: numbers of one step at one Unix time in milliseconds."""

    time_ms: int
    step: int
    metrics: dict[str, float]


def read_metrics(path: Path) -> Iterator[MetricLine]:
    """Yield the whole lines of a mirror file; raises FileNotFoundError if there is none."""
    with path.open("rb") as file:
        yield from parse_lines(file)


def parse_lines(lines: Iterable[bytes]) -> Iterator[MetricLine]:
    """Yield the lines that are whole."""
    return (parsed for line in lines if (parsed := parse_line(line)) is not None)


def parse_line(line: bytes) -> MetricLine | None:
    """Parse one line of the mirror, None if it is not whole."""
    try:
        record = json.loads(line)
        metrics = {str(key): float(value) for key, value in record["metrics"].items()}
        return MetricLine(int(record["time_ms"]), int(record["step"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def metric_series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a mirror file by metric: (step, value), of a step that was recorded twice the later value."""
    series: dict[str, dict[int, float]] = {}
    for line in read_metrics(path):
        for key, value in line.metrics.items():
            series.setdefault(key, {})[line.step] = value
    return {key: sorted(points.items()) for key, points in sorted(series.items())}


def read_mapping(path: Path) -> dict[str, str]:
    """Read `tags.json` or `artifacts.json`; empty if it is missing or not whole."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}
