"""A sweep: Ray Tune around whole runs, each trial a Ray Train run of its own.

A trial's driver holds one CPU and its workers come on top. Tune does not see the workers' resources, so the
number of concurrent trials is counted here from the cluster; without that count trials would wait for each
other forever. Tune's state is not needed to go on: a resumed sweep starts Tune anew with the same trials, and
those that are known report their evaluations from their folders.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge, nested, to_yaml
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.plan import (
    even_share,
    node_resources,
    plan_workers,
    trials_that_fit,
    workers_that_fit,
)
from cosa_dist.distributed.prepare import new_tracking_run
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.plan import SweepPlan, first_comparison, trial_config, tune_space, write_plan
from cosa_dist.distributed.sweep.trial import METRIC, Trial, read_trial, read_trials, run_trial, warm_up
from cosa_dist.tracking.mlflow_runs import ending, finish_run, reopen_run
from cosa_dist.tracking.store import first_line
from cosa_dist.tracking.upload import replay
from cosa_dist.training.checkpoint_files import remove_half_written

log = logging.getLogger(__name__)

DRIVER_CPUS = 1
REDUCTION = 3
"""asha: one of so many trials goes on from each comparison"""


@dataclass(frozen=True)
class SweepResult:
    """Trials of a sweep, best first, and the best one's configuration file."""

    trials: list[Trial]
    best_config: Path
    folder: Path


def concurrent_trials(base: RunConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit on these nodes at once; `ConfigError` with the arithmetic if not even one does."""
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    plan = plan_workers(base, total, nodes)
    need = plan.resources_per_worker
    fits = trials_that_fit(need, plan.workers, nodes) or min(
        1, trials_that_fit(need, plan.workers, nodes, max)
    )
    if fits < 1:
        cpus = DRIVER_CPUS + plan.workers * plan.cpus_per_worker
        raise ConfigError(
            f"a trial needs {cpus:g} CPUs ({DRIVER_CPUS} driver + {plan.workers} workers x "
            f"{plan.cpus_per_worker:g}) and {plan.workers if plan.use_gpu else 0} GPUs, "
            f"each worker on one node; the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on "
            f"{len(nodes)} node(s), which hold {workers_that_fit(need, nodes)} such workers: lower "
            "distributed.workers or distributed.cpus_per_worker"
        )
    return fits


def share_cpus(
    plan: SweepPlan, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> SweepPlan:
    """Give each worker of a trial an even share of the CPUs, unless the plan says how many."""
    config = plan.config
    if config.distributed.cpus_per_worker:
        return plan
    asked = plan_workers(config, resources)
    share = even_share(asked.use_gpu, asked.workers, nodes, DRIVER_CPUS)
    need = asked.resources_per_worker
    while share > 1 and not trials_that_fit({**need, "CPU": share}, asked.workers, nodes):
        share -= 1
    return plan.model_copy(update={"base": merge(plan.base, {"distributed": {"cpus_per_worker": share}})})


class Asha(ASHAScheduler):  # type: ignore[misc]  # Ray comes without this class's types
    """Asynchronous successive halving that lets a trial which has come to its last step end by itself.

    Ray's own stops it there: its reports and pictures would never be written.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide on a trial after an evaluation; the last one counts for others, but stops nothing."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        last = result[self._time_attr] >= self._max_t
        return TrialScheduler.CONTINUE if last else decision


class SweepCallback(tune.Callback):
    """Logs how trials do, notes which the scheduler has pruned, and completes their tracking runs.

    A pruned trial's processes are killed, so its last metrics may not have reached the tracking store; they
    are in its run folder and are sent from there.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each evaluation of a trial."""
        options = self.plan.trial_options(trial.config)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in options.items() if isinstance(value, float))
        log.info(
            "trial %d of %d, step %d: unfiltered mIoU %.2f  (%s)",
            1 + [one.trial_id for one in trials].index(trial.trial_id),
            len(self.plan.points) or self.plan.trials,
            result.get("step", 0),
            result.get("miou_unfiltered", float("nan")),
            shown,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended or was pruned."""
        folder = RunFolder.of(trial_config(self.plan.base, self.plan.trial_options(trial.config)))
        known = read_trial(folder)
        if known is not None and known.status == "unfinished":
            # Its workers may have come further than the evaluation that the scheduler decided on.
            folder.mark_pruned(int(trial.last_result.get("step", 0)))
            note = folder.read_note()
            if note.run_id:
                try:
                    replay(folder.path, note.tracking_uri, note.run_id)
                except Exception as error:  # the sweep's outcome does not depend on the store
                    log.warning("tracking: run %s is not complete: %s", note.run_id, first_line(error))
                finish_run(note.tracking_uri, note.run_id, "KILLED")


def create_sweep(plan: SweepPlan) -> SweepPlan:
    """Create a new sweep's tracking run, the parent of its trials' runs, and its folder, or neither.

    Returns the plan as it was written.
    """
    values = {key: str([point.get(key) for point in plan.points]) for key in plan.keys}
    params = {key: str(entry) for key, entry in plan.space.items()} or values
    tags = {"kind": "sweep", "recipe": plan.config.recipe, "warm_start": str(plan.warm_start)}
    tags |= {"search": plan.search, "scheduler": plan.scheduler}
    with new_tracking_run(plan.config, plan.name, params, tags) as note:
        plan = plan.model_copy(update={"parent_run_id": note.run_id, "tracking_uri": note.tracking_uri})
        write_plan(plan)
    return plan


def run_sweep(plan: SweepPlan, resources: Mapping[str, float]) -> SweepResult:
    """Run a written plan's sweep, or what is left of it, on the initialised Ray cluster.

    Raises `ConfigError` if a trial does not fit on the cluster, `RuntimeError` if no trial has finished, and
    KeyboardInterrupt if the sweep was interrupted; `--resume` goes on with it.
    """
    if plan.parent_run_id:
        reopen_run(plan.tracking_uri, plan.parent_run_id)
    with ending(plan.tracking_uri, plan.parent_run_id):
        shared = str(warm_up(plan.config, resources).path) if plan.warm_start else ""
        _run_trials(plan, resources, shared)
        return outcome(plan)


def _run_trials(plan: SweepPlan, resources: Mapping[str, float], warm_start: str) -> None:
    config = plan.config
    workers = plan_workers(config, resources).workers
    body = tune.with_parameters(run_trial, plan=plan, workers=workers, warm_start=warm_start)
    tuner = tune.Tuner(
        tune.with_resources(body, {"CPU": DRIVER_CPUS}),
        param_space=tune_space(plan.space) if plan.space else {"options": tune.grid_search(plan.points)},
        tune_config=_tune_config(plan, concurrent_trials(config, node_resources())),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns():x}",
            storage_path=str(plan.folder / "tune"),
            verbose=0,
            callbacks=[SweepCallback(plan)],
        ),
    )
    try:
        tuner.fit()
    finally:
        _tidy(plan)
    # Tune answers Ctrl-C itself, ends the trials and returns.
    left = [trial.name for trial in sweep_trials(plan) if trial.status == "unfinished"]
    if left:
        raise KeyboardInterrupt(f"{len(left)} trials are not finished")


def _tidy(plan: SweepPlan) -> None:
    """Remove what trials left half-written: the scheduler ends a trial's processes wherever they are.

    A folder that cannot be read is left as it is: it must not hide why a sweep ended.
    """
    try:
        for trial in sweep_trials(plan):
            remove_half_written(RunFolder.of(trial_config(plan.base, trial.options)).checkpoints)
    except (ValueError, OSError) as error:
        log.warning("half-written checkpoints of sweep %s may remain: %s", plan.name, first_line(error))


def _tune_config(plan: SweepPlan, concurrency: int) -> tune.TuneConfig:
    """Search algorithm and scheduler of a plan."""
    config = plan.config
    shared: dict[str, Any] = {"max_concurrent_trials": concurrency}
    if plan.scheduler == "asha":
        shared["scheduler"] = Asha(
            time_attr="step",
            max_t=config.training.steps,
            grace_period=first_comparison(config),
            reduction_factor=REDUCTION,
        )
    if not plan.space:
        return tune.TuneConfig(metric=METRIC, mode="max", num_samples=1, **shared)
    from ray.tune.search.optuna import OptunaSearch

    # What is known is suggested again first: those trials report their results from their folders.
    known = [trial.options for trial in sweep_trials(plan)]
    measures: dict[str, Any] = {}
    if len(plan.objectives) > 1:
        measures = {"metric": list(plan.objectives), "mode": ["max", "min"]}
    else:
        shared |= {"metric": METRIC, "mode": "max"}
    search = OptunaSearch(points_to_evaluate=known, seed=config.seed, **measures)
    return tune.TuneConfig(num_samples=max(plan.trials, len(known)), search_alg=search, **shared)


def sweep_trials(plan: SweepPlan) -> list[Trial]:
    """The plan's trials as their run folders know them."""
    return read_trials(Path(plan.base["output"]) / "runs", plan.name)


def outcome(plan: SweepPlan) -> SweepResult:
    """Read a sweep's outcome from its trials' folders and write the best one's configuration.

    Finished trials come first, then pruned ones, by falling mIoU; a pruned trial is never the best. Raises
    `RuntimeError` if no trial has finished.
    """
    places = ("finished", "pruned", "unfinished", "failed")

    def order(trial: Trial) -> tuple[Any, ...]:
        # A control run trains classifiers only: the score of its segmentation means nothing.
        control = trial.options.get("kind") == "control"
        return places.index(trial.status), control, -(trial.miou or 0.0), trial.name

    trials = sorted(sweep_trials(plan), key=order)
    if not trials or trials[0].status != "finished":
        reasons = "; ".join(sorted({trial.reason for trial in trials if trial.reason}))
        raise RuntimeError(
            f"no trial of sweep {plan.name} has finished ({plan.folder}): {reasons or 'none has failed'}"
        )
    best = build_config(merge(plan.base, {**nested(trials[0].options), "name": ""}))
    path = plan.folder / "best.yaml"
    path.write_text(to_yaml(best), encoding="utf-8")
    return SweepResult(trials, path, plan.folder)
