"""Sending to an MLflow run: connection, batches, names and limits.

MLflow's SQL stores ignore an exact duplicate of metric, step, time and value, so what may or may
not have arrived can be sent again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cosa_dist.tracking.delivery import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_PER_BATCH = 1000
ENTITIES_PER_BATCH = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250
PERMANENT_ERRORS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"})


def connect(uri: str) -> MlflowClient:
    """A client whose requests to a dead server fail within seconds instead of minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def send_missing(client: MlflowClient, run_id: str, points: Sequence[Point]) -> int:
    """Send those points that the run has not got at their step and time; return their number."""
    known = {
        (key, metric.timestamp, metric.step)
        for key in {point.key for point in points}
        for metric in client.get_metric_history(run_id, key)
    }
    missing = [p for p in points if (p.key, p.time_ms, p.step) not in known]
    send_points(client, run_id, missing)
    return len(missing)


def send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Send points in batches of the size that MLflow takes."""
    from mlflow.entities import Metric

    metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Send settings, cut to MLflow's length, in batches."""
    from mlflow.entities import Param

    items = [Param(entity_name(key), str(value)[:PARAM_LENGTH]) for key, value in params.items()]
    for start in range(0, len(items), ENTITIES_PER_BATCH):
        client.log_batch(run_id, params=items[start : start + ENTITIES_PER_BATCH])


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Send labels, cut to MLflow's length, in batches."""
    from mlflow.entities import RunTag

    items = [RunTag(entity_name(key), str(value)[:TAG_LENGTH]) for key, value in tags.items()]
    for start in range(0, len(items), ENTITIES_PER_BATCH):
        client.log_batch(run_id, tags=items[start : start + ENTITIES_PER_BATCH])


def entity_name(name: str) -> str:
    """The name with every character that MLflow refuses replaced, and no longer than it takes."""
    plain = re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:NAME_LENGTH].rstrip("/") or "_"


def is_permanent(error: Exception) -> bool:
    """Whether sending again is useless: the store understood and refused, or a file is gone."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_ERRORS
    return isinstance(error, FileNotFoundError | IsADirectoryError | TypeError)
