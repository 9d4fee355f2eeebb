"""One trial of a sweep: what its run folder tells of it, and the body that Ray Tune calls.

The run folders are the truth: a sweep is resumed, and its table made, from them alone. What a trial's folder
already knows is reported first, so that a scheduler sees a resumed trial as it saw it the first time; a trial
that is over is not trained again.
"""

from __future__ import annotations

import glob
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cosa_dist.atomic import atomic_write
from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.run_folder import RunFolder, read_mapping
from cosa_dist.distributed.sweep.plan import trial_config
from cosa_dist.tracking.mirror import read_metrics
from cosa_dist.tracking.provenance import git_commit

METRIC = "miou_unfiltered"
COST = "worker_seconds"
TRIAL_FILE = "trial.json"
TrialStatus = Literal["finished", "pruned", "failed", "unfinished"]


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
    commit: str = ""
    """of the code that began it"""

    @property
    def miou(self) -> float | None:
        """The last evaluation's mIoU, None before the first."""
        return self.history[-1].miou if self.history else None

    @property
    def over(self) -> bool:
        """Whether it need not run again."""
        return self.status in ("finished", "pruned")


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep share, as plain values that travel to other processes."""

    base: dict[str, Any]
    """configuration of the sweep, whose name the trials' names start with"""
    workers: int
    """of each trial"""
    parent_run_id: str = ""
    warm_start: str = ""
    """folder of the shared warm-up run; empty: each trial trains its own"""
    keys: list[str] = field(default_factory=list)
    """options that a search algorithm sets one by one; empty if a trial comes as a whole"""

    def options(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A trial's dotted options from what Tune passes."""
        return {key: parameters[key] for key in self.keys} if self.keys else dict(parameters["options"])


def write_options(folder: RunFolder, options: dict[str, Any], workers: int) -> None:
    """Note in a trial's run folder what it tries."""
    noted = {"options": options, "workers": workers, "commit": git_commit()}
    atomic_write(folder.path / TRIAL_FILE, json.dumps(noted, indent=1))


def read_trials(runs: Path, sweep: str) -> list[Trial]:
    """All trials of a sweep below the folder of runs, by name; other folders are left alone."""
    # Eight digits are a trial's name; another sweep's name may begin with this one's.
    folders = sorted(runs.glob(f"{glob.escape(sweep)}-{'[0-9a-f]' * 8}"))
    return [trial for path in folders if (trial := read_trial(RunFolder(path))) is not None]


def read_trial(folder: RunFolder) -> Trial | None:
    """Read one trial's run folder; None if it is not one."""
    noted = read_mapping(folder.path / TRIAL_FILE)
    if not isinstance(noted.get("options"), dict):
        return None
    lines = list(read_metrics(folder.metrics_file)) if folder.metrics_file.is_file() else []
    found = {
        line.step: line.metrics[key]
        for line in lines
        for key in (f"val/{METRIC}", f"final/{METRIC}")
        if key in line.metrics
    }
    times = [line.time_ms for line in lines] or [0]
    status, last = _status(folder), max(found, default=0)
    if status == "pruned" and (step := folder.pruned_step()) is not None:
        last = step  # what it did before its processes were gone does not count
    return Trial(
        name=folder.name,
        options=noted["options"],
        status=status,
        history=tuple(Evaluated(step, found[step]) for step in sorted(found) if step <= last),
        seconds=(max(times) - min(times)) / 1000,
        workers=int(noted.get("workers", 1)),
        reason=folder.failure or "",
        commit=str(noted.get("commit", "")),
    )


def _status(folder: RunFolder) -> TrialStatus:
    try:
        if folder.read_note().finished:
            return "finished"
    except ConfigError:
        pass  # not even begun, or damaged: the trial itself will say so
    if folder.pruned:
        return "pruned"
    return "unfinished" if folder.failure is None else "failed"


def recorded_metrics(trial: Trial) -> list[dict[str, float]]:
    """What a trial has reported so far, one entry per evaluation; its cost grows evenly with the steps."""
    last = trial.history[-1].step if trial.history else 1
    cost = trial.workers * trial.seconds / last
    return [
        {"step": float(entry.step), METRIC: entry.miou, COST: cost * entry.step} for entry in trial.history
    ]


def run_trial(parameters: dict[str, Any], task: TrialTask) -> None:
    """Body of one trial: report the evaluations that are known, then train and report those that follow."""
    import ray
    from ray import tune

    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run, reopen

    options = task.options(parameters)
    config = trial_config(task.base, options)
    folder = RunFolder.of(config)
    known = read_trial(folder)
    if known is not None:
        for metrics in recorded_metrics(known):
            tune.report(metrics)
        if known.over:
            return
    # A killed sweep may have left a run folder that is not yet noted as a trial.
    run = reopen(folder, {}) if folder.config_file.is_file() else prepare_run(config, task.parent_run_id)
    if known is None:
        if task.warm_start:
            from cosa_dist.distributed.sweep.warm_start import fork

            fork(RunFolder(Path(task.warm_start)), run)
        write_options(folder, options, task.workers)
    launch(run, ray.cluster_resources(), callbacks=[report_to_tune(task.workers)])


def report_to_tune(workers: int) -> Any:
    """Callback of Ray Train that passes rank 0's evaluations on to Tune, with what they have cost."""
    from ray.tune.integration.ray_train import TuneReportCallback

    started = time.monotonic()

    class WithCost(TuneReportCallback):  # type: ignore[misc]  # Ray comes without this class's types
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            cost = {COST: workers * (time.monotonic() - started)}
            super().after_report(run_context, [one | cost for one in metrics], checkpoint)

    return WithCost()
