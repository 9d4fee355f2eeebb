"""From a run folder to its MLflow run: what the store misses is sent, with the times of the first recording.

One function serves the running tracker, which calls it again and again from a thread, a resumed run and
`replay`. A call that fails is repeated: MLflow's SQL stores ignore an exact duplicate of metric, step, time
and value, so what may or may not have arrived can be sent again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cosa_dist.tracking.mirror import ARTIFACTS_FILE, METRICS_FILE, TAGS_FILE, parse_lines, read_mapping
from cosa_dist.tracking.mlflow_runs import Status, connect, entity_name, send, send_tags, update_status
from cosa_dist.tracking.store import first_line, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHORTEST_PAUSE = 0.5

log = logging.getLogger(__name__)


class Upload:
    """How far a run folder has been sent; `status` is what the store has, if that is known."""

    def __init__(self, folder: Path, uri: str, run_id: str, status: str = "") -> None:
        self.folder, self.uri, self.run_id = folder, uri, run_id
        self.unwritten = b""
        """lines of metrics that the disk refuses"""
        self._tags = {"status": status}
        self._offset = 0
        self._files: set[tuple[str, int]] = set()

    def send_missing(self) -> int:
        """Send what the store misses and return the number of metric points among it.

        A file that fails holds up neither the others nor the status; its error is raised at the end. Raises
        FileNotFoundError without metrics, and MLflow's errors.
        """
        client = connect(self.uri)
        sent = self._send_metrics(client)
        tags = {k: v for k, v in read_mapping(self.folder / TAGS_FILE).items() if self._tags.get(k) != v}
        status = tags.pop("status", "")
        send_tags(client, self.run_id, tags)
        self._tags |= tags
        failure = self._send_files(client)
        if status:
            update_status(client, self.run_id, cast(Status, status))
            self._tags["status"] = status
        if failure:
            raise failure
        return sent

    def _send_metrics(self, client: MlflowClient) -> int:
        """Send the points after the offset; at the start, only those that the run has not got."""
        from mlflow.entities import Metric

        with (self.folder / METRICS_FILE).open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        points = [
            Metric(entity_name(key), value, line.time_ms, line.step)
            for line in parse_lines((content + self.unwritten).splitlines())
            for key, value in line.metrics.items()
        ]
        if not self._offset:
            known = {
                (key, point.timestamp, point.step)
                for key in {point.key for point in points}
                for point in client.get_metric_history(self.run_id, key)
            }
            points = [p for p in points if (p.key, p.timestamp, p.step) not in known]
        send(client, self.run_id, "metrics", points)
        self._offset += content.rfind(b"\n") + 1
        return len(points)

    def _send_files(self, client: MlflowClient) -> Exception | None:
        """Send tables and artifacts that are new or have changed; return the last error."""
        tables = {f"tables/{path.name}": "tables" for path in sorted(self.folder.glob("tables/*.json"))}
        failure = None
        for name, target in (tables | read_mapping(self.folder / ARTIFACTS_FILE)).items():
            path = self.folder / name
            if not path.is_file() or (state := (name, path.stat().st_mtime_ns)) in self._files:
                continue
            try:
                client.log_artifact(self.run_id, str(path), target or None)
                self._files.add(state)
            except Exception as error:  # artifact stores raise errors of many kinds
                failure = error
        return failure


class UploadThread:
    """Uploads a run folder every few seconds, more rarely while the store does not answer."""

    def __init__(self, upload: Upload, *, seconds: float = 5.0, longest_pause: float = 60.0) -> None:
        """Start the thread; `longest_pause` is between two attempts during an outage, in seconds."""
        self.uri, self.run_id = upload.uri, upload.run_id
        self._upload, self._seconds, self._longest_pause = upload, seconds, longest_pause
        self._requests: queue.SimpleQueue[Future[None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="tracking-upload", daemon=True).start()

    def flush(self, seconds: float) -> Exception | None:
        """Upload now; return the error of that attempt, which is a TimeoutError after `seconds`."""
        attempt: Future[None] = Future()
        self._requests.put(attempt)
        try:
            attempt.result(max(0.0, seconds))
        except Exception as error:
            return error
        return None

    def close(self, seconds: float, unwritten: bytes = b"") -> str:
        """Upload the rest with at most `seconds` of attempts, and stop; return why it failed, if it did."""
        self._upload.unwritten = unwritten
        end = time.monotonic() + seconds
        while (error := self.flush(end - time.monotonic())) and time.monotonic() + SHORTEST_PAUSE < end:
            time.sleep(SHORTEST_PAUSE)
        self._requests.put(None)
        return first_line(error) if error else ""

    def _run(self) -> None:
        failures = 0
        while True:
            attempt: Future[None] | None = Future()
            with suppress(queue.Empty):
                pause = self._seconds * 2.0 ** min(failures, 16)
                attempt = self._requests.get(timeout=min(self._longest_pause, pause))
            if attempt is None:
                return
            try:
                self._upload.send_missing()
            except Exception as error:  # whatever happens here, training goes on
                if not failures:
                    log.warning("tracking: cannot upload, will try again: %s", first_line(error))
                failures += 1
                attempt.set_exception(error)
            else:
                if failures:
                    log.info("tracking: the store answers again")
                failures = 0
                attempt.set_result(None)


def replay(folder: Path, uri: str, run_id: str) -> int:
    """Send what the store misses of a run folder and return the number of metric points among it.

    Raises FileNotFoundError without metrics, and StoreError if the store has no such run, or refuses or does
    not answer.
    """
    with store_errors(uri):
        connect(uri).get_run(run_id)
        # That a run has not ended is not the folder's to say: only an end is sent.
        return Upload(folder, uri, run_id, "RUNNING").send_missing()
