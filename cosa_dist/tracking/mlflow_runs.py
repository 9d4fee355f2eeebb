"""MLflow runs: the connection, names and limits of what is sent, and the life of a run as the driver sees it.

Only `MlflowClient` is used: no active run, no global URI.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from cosa_dist.tracking.store import StoreError, artifact_location, first_line, store_errors, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = {"metrics": 1000, "params": 100, "tags": 100}
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250
PARENT_TAG = "mlflow.parentRunId"

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

log = logging.getLogger(__name__)


def connect(uri: str) -> MlflowClient:
    """A client whose requests to a dead server fail within seconds instead of minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def send(
    client: MlflowClient, run_id: str, kind: Literal["metrics", "params", "tags"], items: Sequence[Any]
) -> None:
    """Send entities in batches of MLflow's size; metrics and tags that it calls invalid are left out."""
    from mlflow.exceptions import MlflowException

    for start in range(0, len(items), BATCH[kind]):
        batch: dict[str, Any] = {kind: items[start : start + BATCH[kind]]}
        try:
            client.log_batch(run_id, **batch)
        except MlflowException as error:
            if kind == "params" or error.get_http_status_code() != 400:
                raise
            log.warning("tracking: the store refuses %s: %s", kind, first_line(error))


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Send labels, cut to MLflow's length."""
    from mlflow.entities import RunTag

    send(client, run_id, "tags", [RunTag(entity_name(k), str(v)[:TAG_LENGTH]) for k, v in tags.items()])


def entity_name(name: str) -> str:
    """The name with every character that MLflow refuses replaced, and no longer than it takes."""
    plain = re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:NAME_LENGTH].rstrip("/") or "_"


def create_run(
    uri: str,
    experiment: str,
    run_name: str,
    *,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    parent_run_id: str = "",
) -> str:
    """Create a run in a prepared store and return its id; the experiment is created if missing.

    Values of `tags` and `params` (flattened settings) are cut to MLflow's limits. Raises StoreError if the
    experiment is deleted or the store refuses.
    """
    from mlflow.entities import Param

    labels = dict(tags or {}) | ({PARENT_TAG: parent_run_id} if parent_run_id else {})
    with store_errors(uri):
        client = connect(uri)
        run = client.create_run(experiment_id(client, uri, experiment), run_name=run_name)
        run_id: str = run.info.run_id
        send_tags(client, run_id, labels)
        values = [Param(entity_name(k), str(v)[:PARAM_LENGTH]) for k, v in (params or {}).items()]
        send(client, run_id, "params", values)
    return run_id


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is created if missing, also when another process does so now.

    Raises StoreError if the experiment of that name is deleted.
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


def update_status(client: MlflowClient, run_id: str, status: Status) -> None:
    """Set the status of a run; one that is RUNNING again keeps its earlier end time until the next one."""
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status=status)


def reopen_run(uri: str, run_id: str) -> bool:
    """Mark a run as running again, before a restart continues it; see `finish_run`."""
    return finish_run(uri, run_id, "RUNNING")


def finish_run(uri: str, run_id: str, status: Status) -> bool:
    """Set the status of a run whose workers cannot do it any more; return whether the store took it.

    A store that does not answer is a warning and no error: the run's outcome does not depend on it.
    """
    from mlflow.exceptions import MlflowException

    try:
        update_status(connect(uri), run_id, status)
    except (MlflowException, OSError) as error:
        place, reason = without_password(uri), first_line(error)
        log.warning("tracking: run %s keeps its old status, %s does not take it: %s", run_id, place, reason)
        return False
    return True


@contextmanager
def made_with(uri: str, run_id: str) -> Iterator[None]:
    """Make what belongs to a new run, which is FAILED where that fails; without a run id nothing is set."""
    try:
        yield
    except BaseException:
        if run_id:
            finish_run(uri, run_id, "FAILED")
        raise


@contextmanager
def ending(uri: str, run_id: str) -> Iterator[None]:
    """Give a run its status at the end of the block: FINISHED, KILLED (KeyboardInterrupt) or FAILED.

    Nothing is set without a run id.
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
