"""The local mirror of a run: `<run folder>/metrics.jsonl`, always written, whatever MLflow does.

One line per call, `{"time_ms": ..., "step": ..., "metrics": {...}}`, handed to the operating
system at once. A line that a crash cut in half is skipped on reading and closed on the next
start. What a full disk refuses waits in memory for the next call. Settings, tags and tables lie
beside it as JSON. Values that JSON has no word for are written as the strings "NaN", "Infinity"
and "-Infinity".
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosa_dist.atomic import atomic_write
from cosa_dist.tracking.tracker import Status

METRICS_FILE = "metrics.jsonl"
PARAMS_FILE = "params.json"
TAGS_FILE = "tags.json"
ARTIFACTS_FILE = "artifacts.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricLine:
    """One line of the mirror: numbers of one step at one Unix time in milliseconds."""

    time_ms: int
    step: int
    metrics: dict[str, float]


def read_metrics(path: Path) -> Iterator[MetricLine]:
    """Yield the whole lines of a mirror file; a half-written or foreign line is skipped.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with path.open("rb") as file:
        for line in file:
            parsed = parse_line(line)
            if parsed is not None:
                yield parsed


def parse_line(line: bytes) -> MetricLine | None:
    """Parse one line of the mirror, None if it is not whole."""
    try:
        record = json.loads(line)
        metrics = {str(key): float(value) for key, value in record["metrics"].items()}
        return MetricLine(int(record["time_ms"]), int(record["step"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def metric_series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a mirror file: metric name -> (step, value) in the order of recording."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(path):
        for key, value in line.metrics.items():
            series.setdefault(key, []).append((line.step, value))
    return series


class LocalTracker:
    """Writes the mirror of one run; opened again, it continues the file.

    A metric that an earlier session recorded at some step is not recorded again at that step or
    before: these are steps that training repeats after a crash.
    """

    def __init__(self, folder: Path, run_id: str = "") -> None:
        self.run_id = run_id
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / METRICS_FILE
        self._last_step: dict[str, int] = {}
        if self.path.exists():
            for line in read_metrics(self.path):
                for key in line.metrics:
                    self._last_step[key] = max(line.step, self._last_step.get(key, line.step))
        self._file = self.path.open("ab", buffering=0)
        self._waiting = b"\n" if _ends_inside_a_line(self.path) else b""
        self._refused = False
        self._write()

    def unseen(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of `metrics` that no earlier session recorded at `step` or later."""
        return {
            key: value
            for key, value in metrics.items()
            if key not in self._last_step or step > self._last_step[key]
        }

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Append one line and hand it to the operating system."""
        fresh = {key: _portable(value) for key, value in self.unseen(metrics, step).items()}
        if not fresh or self._file.closed:
            return
        stamp = int(time.time() * 1000) if time_ms is None else time_ms
        line = json.dumps({"time_ms": stamp, "step": int(step), "metrics": fresh}, allow_nan=False)
        self._waiting += line.encode() + b"\n"
        self._write()

    def _write(self) -> None:
        """Hand over what is waiting; what a full disk refuses goes on waiting."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self._refused = False
        except OSError as error:
            if not self._refused:
                log.warning("tracking: %s cannot be written, its lines wait: %s", self.path, error)
            self._refused = True

    def log_params(self, params: Mapping[str, str]) -> None:
        """Add settings to `params.json`."""
        _merge_json(self.folder / PARAMS_FILE, params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add labels to `tags.json`; a later value replaces an earlier one."""
        _merge_json(self.folder / TAGS_FILE, tags)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Note a file in `artifacts.json`, after copying it here if it lies elsewhere."""
        source = Path(path).resolve()
        home = self.folder.resolve()
        if not source.is_relative_to(home):
            target = home / "artifacts" / folder / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            source = target
        _merge_json(self.folder / ARTIFACTS_FILE, {str(source.relative_to(home)): folder})

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Write `tables/<name>.json`."""
        atomic_write(self.folder / "tables" / f"{name}.json", table_json(rows))

    def flush(self) -> None:
        """Force the lines to the disk."""
        if not self._file.closed:
            self._write()
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())

    def close(self, status: Status = "FINISHED") -> None:
        """Write the status to `tags.json` and close the file."""
        if not self._file.closed:
            self.set_tags({"status": status})
            self.flush()
            self._file.close()


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as a JSON list of rows; numbers that are not finite become null."""
    finite = [{key: _finite_or_none(value) for key, value in row.items()} for row in rows]
    return json.dumps(finite, indent=1, default=str)


def read_mapping(path: Path) -> dict[str, str]:
    """Read `tags.json` or `params.json`; empty if it is missing or not whole."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): str(value) for key, value in content.items()}


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _portable(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def _ends_inside_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _merge_json(path: Path, values: Mapping[str, str]) -> None:
    merged = read_mapping(path) | {str(key): str(value) for key, value in values.items()}
    atomic_write(path, json.dumps(merged, indent=1))
