"""A sweep from its plan to its outcome: tracking run, shared warm-up, trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cosa_dist.distributed.plan import even_share, plan_workers, trials_that_fit
from cosa_dist.distributed.sweep.plan import SweepPlan, write_plan
from cosa_dist.distributed.sweep.run import DRIVER_CPUS, SweepResult, run_sweep
from cosa_dist.distributed.sweep.warm_start import warm_up
from cosa_dist.tracking.mlflow_runs import create_run, ending, made_with, reopen_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.store import prepare_store


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
    distributed = config.distributed.model_copy(update={"cpus_per_worker": share})
    return replace(plan, base=config.model_copy(update={"distributed": distributed}).model_dump(mode="json"))


def open_tracking(plan: SweepPlan) -> SweepPlan:
    """Create the sweep's tracking run, the parent of its trials' runs; its id becomes part of the plan.

    Raises:
        StoreError: the tracking store cannot be used.
    """
    config = plan.config
    if not config.tracking.enabled:
        return plan
    uri = prepare_store(config.tracking.uri or None, Path(config.output))
    values = {key: str([point.get(key) for point in plan.points]) for key in plan.keys}
    params = {key: str(entry) for key, entry in plan.space.items()} if plan.space else values
    tags = {"kind": "sweep", "recipe": config.recipe, **provenance()}
    tags |= {"search": plan.search, "scheduler": plan.scheduler, "warm_start": str(plan.warm_start)}
    run_id = create_run(uri, config.tracking.experiment, plan.name, params=params, tags=tags)
    return replace(plan, parent_run_id=run_id, tracking_uri=uri)


def begin(plan: SweepPlan) -> SweepPlan:
    """Create the tracking run and the folder of a new sweep; return the plan as it was written.

    Raises:
        ConfigError, OSError, StoreError: one of them cannot be made; then neither is there.
    """
    plan = open_tracking(plan)
    with made_with(plan.tracking_uri, plan.parent_run_id):
        write_plan(plan)
    return plan


def conduct(plan: SweepPlan, resources: Mapping[str, float], fresh: bool) -> SweepResult:
    """Run a written plan's sweep, or what is left of it.

    Args:
        plan: as written.
        resources: total resources of the cluster.
        fresh: whether its tracking run was created just now.

    Raises:
        RuntimeError: no trial has finished.
        KeyboardInterrupt: it was stopped; the tracking run is marked KILLED.
    """
    if plan.parent_run_id and not fresh:
        reopen_run(plan.tracking_uri, plan.parent_run_id)
    with ending(plan.tracking_uri, plan.parent_run_id):
        shared = str(warm_up(plan.config, resources)) if plan.warm_start else ""
        return run_sweep(plan, resources, shared)
