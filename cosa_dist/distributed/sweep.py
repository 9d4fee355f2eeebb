"""A sweep: Ray Tune around whole runs, each trial a Ray Train run of its own.

A trial's driver holds one CPU and its workers come on top. Tune does not see the workers' resources, so
the number of concurrent trials is counted here from the cluster; without that count trials would wait for
each other forever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge, nested, to_yaml
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.launch import launch
from cosa_dist.distributed.plan import plan_workers
from cosa_dist.distributed.preparation import prepare_run
from cosa_dist.tracking.mlflow_tracker import create_run, finish_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.store import prepare_store

METRIC = "miou_unfiltered"
DRIVER_CPUS = 1


@dataclass(frozen=True)
class SweepResult:
    """Trials of a sweep, best first, and the best one's configuration file."""

    rows: list[dict[str, Any]]
    best_config: Path
    parent_run_id: str


def concurrent_trials(base: RunConfig, resources: Mapping[str, float]) -> int:
    """How many trials fit on the cluster at once.

    Raises:
        ConfigError: not even one; the message shows the arithmetic.
    """
    plan = plan_workers(base, dict(resources))
    cpus = DRIVER_CPUS + plan.workers * plan.cpus_per_worker
    fits = int(resources.get("CPU", 0) // cpus)
    if plan.use_gpu:
        fits = min(fits, int(resources.get("GPU", 0) // plan.workers))
    if fits < 1:
        raise ConfigError(
            f"a trial needs {cpus:g} CPUs ({DRIVER_CPUS} driver + {plan.workers} workers x "
            f"{plan.cpus_per_worker:g}) and {plan.workers if plan.use_gpu else 0} GPUs; the cluster "
            f"has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
        )
    return fits


def run_trial(parameters: dict[str, Any]) -> None:
    """Body of one trial: build its configuration, launch it, report its evaluations to Tune."""
    base = dict(parameters.pop("base"))
    parent = parameters.pop("parent_run_id")
    trial = tune.get_context().get_trial_id() or "trial"
    values = merge(base, nested(parameters))
    values["name"] = f"{base['name']}-{trial}"
    run = prepare_run(build_config(values, f"trial {trial}"), parent_run_id=parent)
    launch(run, ray.cluster_resources(), callbacks=[TuneReportCallback()])


def _parent_run(base: RunConfig, space: Mapping[str, Any]) -> tuple[str, str]:
    if not base.tracking.enabled:
        return "", ""
    uri = prepare_store(base.tracking.uri or None, Path(base.output))
    tags = {"kind": "sweep", "recipe": base.recipe, **provenance()}
    params = {key: str(value) for key, value in space.items()}
    return uri, create_run(uri, base.tracking.experiment, base.name, params=params, tags=tags)


def run_sweep(
    base: RunConfig,
    space: Mapping[str, Any],
    trials: int,
    scheduler: str,
    resources: Mapping[str, float],
) -> SweepResult:
    """Search `space` around `base` on the initialised Ray cluster.

    Args:
        base: the configuration that trials change; absolute paths, with a name.
        space: Tune's distributions by dotted option.
        trials: number of samples (of the whole grid, for grids).
        scheduler: `asha` stops weak trials at their intermediate evaluations, `none` does not.
        resources: total resources of the cluster.

    Raises:
        ConfigError: a trial does not fit on the cluster.
        RuntimeError: every trial failed.
    """
    concurrency = concurrent_trials(base, resources)
    uri, parent = _parent_run(base, space)
    folder = Path(base.output) / "sweeps" / base.name
    asha = ASHAScheduler(time_attr="step", max_t=base.training.steps, grace_period=1)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"CPU": DRIVER_CPUS}),
        param_space={**space, "base": base.model_dump(mode="json"), "parent_run_id": parent},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrency,
            scheduler=asha if scheduler == "asha" else None,
        ),
        run_config=tune.RunConfig(name=f"tune-{time.time_ns():x}", storage_path=str(folder), verbose=1),
    )
    grid = tuner.fit()
    rows = _rows(grid, list(space))
    if parent:
        finish_run(uri, parent, "FINISHED" if rows[0][METRIC] is not None else "FAILED")
    if rows[0][METRIC] is None:
        raise RuntimeError(f"every trial of sweep {base.name} failed; see {folder}")
    best = nested({key: rows[0][key] for key in space})
    config = build_config(merge(base.model_dump(mode="json"), {**best, "name": ""}))
    path = folder / "best.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return SweepResult(rows, path, parent)


def _rows(grid: tune.ResultGrid, keys: list[str]) -> list[dict[str, Any]]:
    """A row per trial: its score, its parameters, its status; best first, failed ones last."""
    rows = [
        {
            METRIC: (result.metrics or {}).get(METRIC),
            **{key: (result.config or {}).get(key) for key in keys},
            "status": "failed" if result.error else "done",
        }
        for result in (grid[index] for index in range(len(grid)))
    ]
    return sorted(rows, key=lambda row: (row[METRIC] is None, -(row[METRIC] or 0.0)))
