"""What is known of a sweep's trials, read from their run folders.

The run folders are the truth: configuration, metrics and outcome of a trial lie there whatever becomes of
Ray Tune's own state, so a sweep is taken up again, and its table made, from them alone.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cosa_dist.atomic import atomic_write
from cosa_dist.tracking.mirror import METRICS_FILE, read_metrics

METRIC = "miou_unfiltered"
STOPPED_FILE = "stopped.json"
TRIAL_FILE = "trial.json"
TrialStatus = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a trial."""

    step: int
    miou: float
    """unfiltered mIoU in per cent, of the better network"""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as far as it came."""

    name: str
    options: dict[str, Any]
    """dotted options on top of the sweep's base"""
    status: TrialStatus
    history: tuple[Evaluated, ...]
    """its evaluations, by step"""
    seconds: float
    """time between its first and its last record"""
    workers: int
    reason: str = ""
    """of a failure, in one line"""

    @property
    def miou(self) -> float | None:
        """The last evaluation's mIoU, None before the first."""
        return self.history[-1].miou if self.history else None

    @property
    def over(self) -> bool:
        """Whether it need not run again."""
        return self.status in ("finished", "stopped")


def write_options(folder: Path, options: dict[str, Any], workers: int) -> None:
    """Note in a trial's run folder what it tries."""
    text = json.dumps({"options": options, "workers": workers}, indent=1)
    atomic_write(folder / TRIAL_FILE, text)


def mark_stopped(folder: Path, step: int) -> None:
    """Note that the scheduler stopped a trial after its evaluation at `step`."""
    atomic_write(folder / STOPPED_FILE, json.dumps({"step": step}))


def is_stopped(folder: Path) -> bool:
    """Whether the scheduler has stopped the trial: what its dying processes meet then is no failure."""
    return (folder / STOPPED_FILE).is_file()


def read_trials(runs: Path, sweep: str) -> list[Trial]:
    """All trials of a sweep below the folder of runs, by name; foreign folders are left alone."""
    # Eight digits are a trial's name; another sweep's name may begin with this one's.
    folders = sorted(runs.glob(f"{glob.escape(sweep)}-{'[0-9a-f]' * 8}")) if runs.is_dir() else []
    return [trial for folder in folders if (trial := read_trial(folder)) is not None]


def read_trial(folder: Path) -> Trial | None:
    """Read one trial's run folder; None if it is not one."""
    noted = _read(folder / TRIAL_FILE)
    if noted is None or not isinstance(noted.get("options"), dict):
        return None
    lines = list(read_metrics(folder / METRICS_FILE)) if (folder / METRICS_FILE).is_file() else []
    found: dict[int, float] = {}
    for line in lines:
        for key in (f"val/{METRIC}", f"final/{METRIC}"):
            if key in line.metrics:
                found[line.step] = line.metrics[key]
    times = [line.time_ms for line in lines]
    status, last = _status(folder), max(found, default=0)
    if status == "stopped":
        # What it did before its processes were gone does not count.
        last = (_read(folder / STOPPED_FILE) or {}).get("step", last)
    failure = folder / "failure.txt"
    return Trial(
        name=folder.name,
        options=noted["options"],
        status=status,
        history=tuple(Evaluated(step, found[step]) for step in sorted(found) if step <= last),
        seconds=(max(times) - min(times)) / 1000 if times else 0.0,
        workers=int(noted.get("workers", 1)),
        reason=failure.read_text(encoding="utf-8").strip() if failure.is_file() else "",
    )


def _status(folder: Path) -> TrialStatus:
    note = _read(folder / "run.json")
    if note is not None and note.get("finished"):
        return "finished"
    if is_stopped(folder):
        return "stopped"
    return "failed" if (folder / "failure.txt").is_file() else "unfinished"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
