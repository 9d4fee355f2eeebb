"""One MLflow run: created in the driver, written by rank 0 from a background thread.

Training never waits for the store. What is logged goes into a buffer; a thread sends it in
batches and, while the store does not answer, keeps it and tries again at growing intervals. What
is undelivered when the run is closed is reported; it stays in the run's local mirror, from which
`replay` sends it. Only `MlflowClient` is used: no active run, no global URI.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosa_dist.tracking.delivery import Delivery, Point
from cosa_dist.tracking.local_tracker import (
    ARTIFACTS_FILE,
    METRICS_FILE,
    PARAMS_FILE,
    TAGS_FILE,
    LocalTracker,
    read_mapping,
    read_metrics,
    table_json,
)
from cosa_dist.tracking.mlflow_client import (
    METRICS_PER_BATCH,
    connect,
    entity_name,
    is_permanent,
    send_missing,
    send_params,
    send_points,
    send_tags,
)
from cosa_dist.tracking.store import StoreError, without_password
from cosa_dist.tracking.tracker import CombinedTracker, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


class MlflowTracker:
    """Writes to an existing run; only `flush` and `close` ever wait, and not for long."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        replay_from: Path | None = None,
        batch: int = 500,
        seconds: float = 5.0,
        longest_pause: float = 60.0,
        patience: float = 15.0,
    ) -> None:
        """Start the sending thread.

        Args:
            uri: absolute URI from `prepare_store`.
            run_id: run made by `create_run`.
            replay_from: mirror file of earlier sessions; what the store misses of it is sent too.
            batch: metrics that are sent without waiting for more.
            seconds: longest time that a metric waits for others.
            longest_pause: longest pause between two attempts during an outage, in seconds.
            patience: how long `flush` and `close` wait for the last deliveries, in seconds.
        """
        self.uri, self.run_id, self._patience = uri, run_id, patience
        self._client: MlflowClient | None = None
        self._closed = False
        self._delivery = Delivery(
            lambda points: send_points(self._connected(), run_id, points),
            is_permanent,
            batch=min(batch, METRICS_PER_BATCH),
            seconds=seconds,
            longest_pause=longest_pause,
        )
        if replay_from is not None and replay_from.exists():
            earlier = list(mirror_points(replay_from))
            if earlier:
                self._act("status", lambda client: client.update_run(run_id, status="RUNNING"))
                self._act("earlier metrics", lambda client: send_missing(client, run_id, earlier))

    @property
    def undelivered(self) -> int:
        """Metric points and other records that the store does not have (yet)."""
        return self._delivery.undelivered

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Buffer numbers of one step."""
        if not self._closed:
            stamp = int(time.time() * 1000) if time_ms is None else time_ms
            self._delivery.add_points(
                [Point(entity_name(k), float(v), stamp, int(step)) for k, v in metrics.items()]
            )

    def log_params(self, params: Mapping[str, str]) -> None:
        """Buffer settings; MLflow refuses a second, different value of one name."""
        kept = dict(params)
        self._act("params", lambda client: send_params(client, self.run_id, kept))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Buffer labels."""
        kept = dict(tags)
        self._act("tags", lambda client: send_tags(client, self.run_id, kept))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Buffer the sending of a file, which must stay where it is until it is sent."""
        name = str(Path(path).resolve())
        self._act(f"file {name}", lambda client: client.log_artifact(self.run_id, name, folder or None))

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Buffer a table, stored as `tables/<name>.json`."""
        text = table_json(rows)
        self._act(
            f"table {name}",
            lambda client: client.log_text(self.run_id, text, f"tables/{name}.json"),
        )

    def flush(self) -> None:
        """Send what is buffered; returns when it is sent or one attempt has failed."""
        self._delivery.flush(self._patience)

    def close(self, status: Status = "FINISHED") -> None:
        """Send what is buffered, set the status, and report what could not be delivered."""
        if self._closed:
            return
        self._act("status", lambda client: client.set_terminated(self.run_id, status=status))
        self._closed = True
        left = self._delivery.close(self._patience)
        if left:
            log.warning(
                "tracking: %d records of run %s did not reach %s; they stay in the run folder "
                "(metrics.jsonl) and are sent when the run is resumed or replayed",
                left,
                self.run_id,
                without_password(self.uri),
            )

    def _act(self, name: str, action: Any) -> None:
        if not self._closed:
            self._delivery.add_action(name, lambda: action(self._connected()))

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client


def open_tracker(folder: Path, uri: str = "", run_id: str = "") -> CombinedTracker:
    """The tracker of rank 0: the mirror in the run folder, and MLflow if a URI and a run are given.

    Opened again after a crash, it drops the points that training repeats, and sends MLflow what the
    crash kept from it.
    """
    local = LocalTracker(folder, run_id)
    if not uri or not run_id:
        return CombinedTracker([local])
    return CombinedTracker([local, MlflowTracker(uri, run_id, replay_from=folder / METRICS_FILE)])


def replay(mirror: Path, uri: str, run_id: str) -> int:
    """Send what the store misses of a run folder, with the times of the first recording.

    Args:
        mirror: the run's `metrics.jsonl`; tags, tables and files beside it are sent too.
        uri: absolute URI of the store.
        run_id: run that the folder belongs to.

    Returns:
        The number of metric points that were missing.

    Raises:
        FileNotFoundError: if there is no such mirror.
        StoreError: the store has no such run, or refuses or does not answer.
    """
    from mlflow.exceptions import MlflowException

    points = list(mirror_points(mirror))
    try:
        return _replay(connect(uri), mirror.parent, run_id, points)
    except MlflowException as error:
        first = error.message.splitlines()[0]
        raise StoreError(f"tracking store {without_password(uri)}: {first}") from error


def _replay(client: MlflowClient, folder: Path, run_id: str, points: list[Point]) -> int:
    """Send a run folder's points and the records beside them."""
    client.get_run(run_id)
    sent = send_missing(client, run_id, points)
    tags = read_mapping(folder / TAGS_FILE)
    status = tags.pop("status", "")
    send_params(client, run_id, read_mapping(folder / PARAMS_FILE))
    send_tags(client, run_id, tags)
    for table in sorted((folder / "tables").glob("*.json")):
        client.log_artifact(run_id, str(table), "tables")
    for name, target in read_mapping(folder / ARTIFACTS_FILE).items():
        if (folder / name).is_file():
            client.log_artifact(run_id, str(folder / name), target or None)
    if status:
        client.set_terminated(run_id, status=status)
    return sent


def mirror_points(mirror: Path) -> Iterator[Point]:
    """Points of a mirror file, under the names they have in MLflow."""
    for line in read_metrics(mirror):
        for key, value in line.metrics.items():
            yield Point(entity_name(key), value, line.time_ms, line.step)
