"""The trials of a sweep: what their run folders tell, the body that Ray Tune calls, a shared loss warm-up.

The run folders are the truth: a sweep is resumed, and its table made, from them alone. What a trial's folder
already knows is reported first, so that a scheduler sees a resumed trial as it saw it the first time; a trial
that is over is not trained again.

While only the classification losses count, nothing depends on the weights of the others, so trials that
differ in those alone would train the same network up to the end of that phase. With a warm start one shared
run does, and a trial starts from a copy of its checkpoint under its own configuration; on the CPU its result
is bit for bit that of a run that has trained its own warm-up.
"""

from __future__ import annotations

import glob
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from cosa_dist.atomic import atomic_write
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.launch import launch
from cosa_dist.distributed.prepare import PreparedRun, prepare_run, reopen
from cosa_dist.distributed.run_folder import RunFolder, RunStoppedError, read_mapping
from cosa_dist.distributed.sweep.plan import SweepPlan, trial_config
from cosa_dist.tracking.mirror import read_metrics
from cosa_dist.tracking.provenance import git_commit
from cosa_dist.training.checkpoint_files import (
    CheckpointError,
    checkpoint_name,
    new_checkpoint,
    read_checkpoint,
)

METRIC = "miou_unfiltered"
COST = "worker_seconds"
TRIAL_FILE = "trial.json"
# What the loss warm-up depends on although its section is free to vary.
USED_IN_WARMUP = ("losses.warmup_steps", "losses.zero_gradients_in_warmup", "assignment.momentum")
FREE = ("losses.", "assignment.", "evaluation.")
CARRIED = ("online.safetensors", "assignment.safetensors", "optimizer.pt")
"""a threshold search starts fresh in the fork: it has seen nothing before co-training"""
TrialStatus = Literal["finished", "pruned", "failed", "unfinished"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as far as it came."""

    name: str
    options: dict[str, Any]
    """dotted options on top of the sweep's base"""
    status: TrialStatus
    history: dict[int, float]
    """unfiltered mIoU in per cent, of the better network, at the steps of its evaluations"""
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
        return self.history[max(self.history)] if self.history else None

    @property
    def over(self) -> bool:
        """Whether it need not run again."""
        return self.status in ("finished", "pruned")


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
        history={step: found[step] for step in sorted(found) if step <= last},
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
    cost = trial.workers * trial.seconds / max(trial.history, default=1)
    return [{"step": float(step), METRIC: miou, COST: cost * step} for step, miou in trial.history.items()]


def run_trial(parameters: dict[str, Any], plan: SweepPlan, workers: int, warm_start: str) -> None:
    """Body of one trial: report the evaluations that are known, then train and report those that follow.

    `workers` is their number in each trial, `warm_start` the folder of the shared warm-up run, if any.
    """
    options = plan.trial_options(parameters)
    config = trial_config(plan.base, options)
    folder = RunFolder.of(config)
    known = read_trial(folder)
    if known is not None:
        for metrics in recorded_metrics(known):
            tune.report(metrics)
        if known.over:
            return
    # A killed sweep may have left a run folder that is not yet noted as a trial.
    run = reopen(folder, {}) if folder.config_file.is_file() else prepare_run(config, plan.parent_run_id)
    if known is None:
        if warm_start:
            fork(RunFolder(Path(warm_start)), run)
        write_options(folder, options, workers)
    launch(run, ray.cluster_resources(), callbacks=[report_to_tune(workers)])


def report_to_tune(workers: int) -> Any:
    """Callback of Ray Train that passes rank 0's evaluations on to Tune, with what they have cost."""
    started = time.monotonic()

    class WithCost(TuneReportCallback):  # type: ignore[misc]  # Ray comes without this class's types
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            cost = {COST: workers * (time.monotonic() - started)}
            super().after_report(run_context, [one | cost for one in metrics], checkpoint)

    return WithCost()


def check_warm_start(base: RunConfig, keys: Iterable[str]) -> None:
    """Raise `ConfigError` if there is no loss warm-up, or a swept option acts in it."""
    if base.kind != "cosa" or not base.losses.warmup_steps:
        raise ConfigError("--warm-start needs a loss warm-up: losses.warmup_steps is 0, or kind is control")
    for key in keys:
        if key in USED_IN_WARMUP or not key.startswith(FREE):
            raise ConfigError(
                f"--warm-start: {key} is varied, but the loss warm-up depends on it; sweep without it"
            )


def warm_up(base: RunConfig, resources: Mapping[str, float]) -> RunFolder:
    """Train a sweep's shared loss warm-up, or go on with it, and return its run folder."""
    steps = base.losses.warmup_steps
    changes = {
        "name": f"{base.name}-warmup",
        "training": {"log_every": steps},
        "evaluation": {"every": 0},
    }
    config = build_config(merge(base.model_dump(), changes))
    folder = RunFolder.of(config)
    if (folder.checkpoints / checkpoint_name(steps)).is_dir():
        return folder
    log.info("shared loss warm-up: %d steps in %s", steps, folder.path)
    run = reopen(folder, {}) if folder.path.is_dir() else prepare_run(config)
    # The workers save and stop at their first line of log, which is the end of the loss warm-up.
    folder.stop_file.touch()
    try:
        launch(run, resources)
    except RunStoppedError:
        return folder
    raise CheckpointError(f"the shared loss warm-up in {folder.path} went on beyond step {steps}")


def fork(source: RunFolder, run: PreparedRun) -> None:
    """Give a fresh run the shared warm-up's checkpoint under its own configuration."""
    steps = run.config.losses.warmup_steps
    origin = source.checkpoints / checkpoint_name(steps)
    content = read_checkpoint(origin)
    kept = {key: value for key, value in content.items() if key not in ("files", "digest", "format")}
    kept["config"] = run.config.model_dump(mode="json")
    with new_checkpoint(run.folder.checkpoints, steps, kept) as working:
        for name in CARRIED:
            shutil.copyfile(origin / name, working / name)
