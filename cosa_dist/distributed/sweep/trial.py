"""One trial of a sweep: a whole run, started, taken up again, or told over from its folder.

Ray Tune calls `run_trial` in a process of its own. What a trial's folder already knows is reported first,
so that a scheduler sees a trial that is taken up again as it saw it the first time; a trial that is over is
not trained again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosa_dist.config.loading import build_config, merge, nested
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.run_folder import run_folder
from cosa_dist.distributed.sweep.trial_points import trial_id
from cosa_dist.distributed.sweep.trials import METRIC, Trial, read_trial, write_options

COST = "worker_seconds"


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


def trial_config(base: dict[str, Any], options: dict[str, Any]) -> RunConfig:
    """Configuration of one trial.

    Raises:
        ConfigError: options that contradict each other.
    """
    values = merge(base, nested(options))
    values["name"] = f"{base['name']}-{trial_id(options)}"
    return build_config(values, f"trial {options}")


def trial_options(parameters: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The trial's dotted options from what Tune passes."""
    if not keys:
        options: dict[str, Any] = parameters["options"]
        return options
    return {key: parameters[key] for key in keys}


def run_trial(parameters: dict[str, Any], task: TrialTask) -> None:
    """Body of one trial; reports the evaluations that are known, then those that follow.

    Args:
        parameters: what Tune chose.
        task: what all trials share.

    Raises:
        RunFailedError: the run failed.
    """
    import ray
    from ray import tune

    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run, reopen

    options = trial_options(parameters, task.keys)
    config = trial_config(task.base, options)
    folder = run_folder(config)
    known = read_trial(folder)
    if known is not None:
        for metrics in told(known):
            tune.report(metrics)
        if known.over:
            return
    # A killed sweep may have left a run folder that is not yet noted as a trial.
    if (folder / "config.yaml").is_file():
        run = reopen(config.name, config.output, {})
    else:
        run = prepare_run(config, parent_run_id=task.parent_run_id)
    if known is None:
        if task.warm_start:
            from cosa_dist.distributed.sweep.warm_start import fork

            fork(Path(task.warm_start), run)
        write_options(folder, options, task.workers)
    launch(run, ray.cluster_resources(), callbacks=[report_to_tune(task.workers)])


def told(trial: Trial) -> list[dict[str, float]]:
    """What a trial has reported so far, one entry per evaluation; its cost grows evenly with the steps."""
    last = trial.history[-1].step if trial.history else 1
    return [
        {
            "step": float(entry.step),
            METRIC: entry.miou,
            COST: trial.workers * trial.seconds * entry.step / last,
        }
        for entry in trial.history
    ]


def report_to_tune(workers: int) -> Any:
    """Callback of Ray Train that passes rank 0's evaluations on to Tune, with what they have cost."""
    import time

    from ray.tune.integration.ray_train import TuneReportCallback

    started = time.monotonic()

    class WithCost(TuneReportCallback):  # type: ignore[misc]  # Ray comes without this class's types
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            seconds = time.monotonic() - started
            super().after_report(
                run_context, [{**one, COST: workers * seconds} for one in metrics], checkpoint
            )

    return WithCost()
