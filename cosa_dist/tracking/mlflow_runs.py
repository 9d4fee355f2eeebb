"""The life of an MLflow run as the driver sees it: created, reopened by a resume, and given its status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cosa_dist.tracking.mlflow_client import connect, send_params, send_tags
from cosa_dist.tracking.store import StoreError, artifact_location, without_password
from cosa_dist.tracking.tracker import Status

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
log = logging.getLogger(__name__)


def create_run(
    uri: str,
    experiment: str,
    run_name: str,
    *,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    parent_run_id: str = "",
) -> str:
    """Create a run in a prepared store and return its id.

    Args:
        uri: absolute URI from `prepare_store`.
        experiment: name of the experiment, created if missing.
        run_name: name shown in the tables.
        tags: labels of the run; values are cut to MLflow's limit.
        params: flattened settings; values are cut to MLflow's limit.
        parent_run_id: run of the sweep that this run belongs to.

    Raises:
        StoreError: if the experiment is deleted or the store refuses.
    """
    from mlflow.exceptions import MlflowException

    labels = dict(tags or {}) | ({PARENT_TAG: parent_run_id} if parent_run_id else {})
    try:
        client = connect(uri)
        run = client.create_run(experiment_id(client, uri, experiment), run_name=run_name)
        run_id: str = run.info.run_id
        send_tags(client, run_id, labels)
        send_params(client, run_id, params or {})
    except MlflowException as error:
        raise StoreError(f"tracking store {without_password(uri)}: {error.message}") from error
    return run_id


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is created if missing, also when another process does so now.

    Raises:
        StoreError: if the experiment of that name is deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri)))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise StoreError(f"tracking experiment {name!r}: {error.message}") from error
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"tracking experiment {name!r} is deleted; choose another name, or restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def reopen_run(uri: str, run_id: str) -> bool:
    """Mark a run as running again, before a restart continues it; see `finish_run`.

    MLflow keeps the earlier end time until the next one: it counts only beside another status than RUNNING.
    """
    return _tell(uri, run_id, lambda client: client.update_run(run_id, status="RUNNING"))


def finish_run(uri: str, run_id: str, status: Status) -> bool:
    """Set the status of a run whose workers cannot do it any more.

    Returns:
        Whether the store has taken it: one that is away is a warning and no error, since the run's
        outcome does not depend on it.
    """
    return _tell(uri, run_id, lambda client: client.set_terminated(run_id, status=status))


@contextmanager
def made_with(uri: str, run_id: str) -> Iterator[None]:
    """Make what belongs to a new run; where that fails, the run is FAILED. Without a run id, none is told."""
    try:
        yield
    except BaseException:
        if run_id:
            finish_run(uri, run_id, "FAILED")
        raise


@contextmanager
def ending(uri: str, run_id: str) -> Iterator[None]:
    """Give a run its status at the end of the block: FINISHED, KILLED (KeyboardInterrupt) or FAILED.

    Without a run id, nothing is told to anybody.
    """
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if run_id:
            finish_run(uri, run_id, status)


def _tell(uri: str, run_id: str, say: Callable[[MlflowClient], object]) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        say(connect(uri))
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning(
            "tracking: run %s keeps its old status, %s does not take it: %s",
            run_id,
            without_password(uri),
            reason,
        )
        return False
    return True
