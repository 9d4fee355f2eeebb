"""The tracker of a run, to which the training loop logs without knowing MLflow.

Everything goes into the run folder first (the mirror: `metrics.jsonl`, `tags.json`, `tables/`,
`artifacts.json`), handed to the operating system at once; what a full disk refuses waits in memory. A
background thread uploads from there to MLflow, so training never waits for the store and an outage loses
nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosa_dist.atomic import atomic_write
from cosa_dist.tracking.mirror import ARTIFACTS_FILE, METRICS_FILE, TAGS_FILE, parse_lines, read_mapping
from cosa_dist.tracking.mlflow_runs import Status
from cosa_dist.tracking.store import without_password
from cosa_dist.tracking.upload import Upload, UploadThread

log = logging.getLogger(__name__)


class Tracker:
    """Records one run; opened again after a crash, it continues.

    A metric that an earlier session recorded at some step is not recorded again at that step or before:
    these are steps that training repeats. After `close` nothing is recorded.
    """

    _open = False

    def __init__(self, folder: Path, uri: str = "", run_id: str = "", *, patience: float = 15.0) -> None:
        """Open the mirror and start the upload; without `uri` and `run_id` there is only the mirror.

        `patience` is how long `flush` and `close` wait for the store, in seconds.
        """
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / METRICS_FILE
        self._file = self.path.open("ab", buffering=0)
        self._last_step: dict[str, int] = {}
        earlier = self.path.read_bytes()
        for line in parse_lines(earlier.splitlines()):
            for key in line.metrics:
                self._last_step[key] = max(line.step, self._last_step.get(key, line.step))
        self._unwritten = b"" if not earlier or earlier.endswith(b"\n") else b"\n"
        self._refused = False
        self._open = True
        self._write()
        new = not earlier and not (self.folder / TAGS_FILE).exists()
        self.set_tags({"status": "RUNNING"})
        self._patience = patience
        upload = Upload(self.folder, uri, run_id, "RUNNING" if new else "")
        self.upload = UploadThread(upload) if uri and run_id else None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        known = self._last_step
        fresh = {k: _portable(value) for k, value in metrics.items() if k not in known or step > known[k]}
        if self._open and fresh:
            stamp = int(time.time() * 1000)
            line = json.dumps({"time_ms": stamp, "step": int(step), "metrics": fresh}, allow_nan=False)
            self._unwritten += line.encode() + b"\n"
            self._write()

    def _write(self) -> None:
        """Hand over what is waiting; what a full disk refuses goes on waiting."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._refused = False
        except OSError as error:
            if not self._refused:
                log.warning("tracking: %s cannot be written, its lines wait: %s", self.path, error)
            self._refused = True

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record labels of the run; a later value replaces an earlier one."""
        self._merge_json(TAGS_FILE, tags)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file under `folder` of the run's artifacts; others are copied into the run folder."""
        source = Path(path).resolve()
        if self._open and not source.is_relative_to(self.folder):
            target = self.folder / "artifacts" / folder / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(shutil.copy2(source, target))
        if self._open:
            self._merge_json(ARTIFACTS_FILE, {str(source.relative_to(self.folder)): folder})

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record a table as `tables/<name>.json`, a list of rows; numbers that are not finite become null."""
        finite = [{key: None if _not_finite(value) else value for key, value in row.items()} for row in rows]
        if self._open:
            atomic_write(self.folder / "tables" / f"{name}.json", json.dumps(finite, indent=1, default=str))

    def _merge_json(self, name: str, values: Mapping[str, str]) -> None:
        if self._open:
            merged = read_mapping(self.folder / name) | {
                str(key): str(value) for key, value in values.items()
            }
            atomic_write(self.folder / name, json.dumps(merged, indent=1))

    def flush(self) -> None:
        """Force the lines to the disk and upload; returns when that is done or one attempt has failed."""
        if self._open:
            self._sync()
            if self.upload:
                self.upload.flush(self._patience)

    def _sync(self) -> None:
        self._write()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self, status: Status = "FINISHED") -> None:
        """Record the status, upload, and report what could not be delivered."""
        if not self._open:
            return
        try:
            self.set_tags({"status": status})
        except OSError as error:
            log.warning("tracking: the status %s cannot be written: %s", status, error)
        self._sync()
        failure = self.upload.close(self._patience, self._unwritten) if self.upload else ""
        if self.upload and failure:
            log.warning(
                "tracking: run %s did not reach %s completely (%s); what is missing stays in the run folder "
                "and is sent when the run is resumed or replayed (jobs/replay.py)",
                self.upload.run_id,
                without_password(self.upload.uri),
                failure,
            )
        self._file.close()
        self._open = False


class NullTracker(Tracker):
    """Records nothing: ranks above 0."""

    def __init__(self) -> None:
        self._last_step = {}


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _portable(value: float) -> float | str:
    """The number, or the word for one that JSON has none for."""
    number = float(value)
    if math.isnan(number):
        return "NaN"
    return ("Infinity" if number > 0 else "-Infinity") if math.isinf(number) else number
