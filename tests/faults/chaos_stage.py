"""A small cluster on this machine with everything on it that may be killed: workers, nodes, driver, tracker.

Each node is a Ray node with one CPU, so that two workers sit on two nodes. A driver is the real command in a
process of its own. All of it belongs to this process and ends with the stage.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from cosa_dist.distributed.cluster import ENVIRONMENT, free_port
from cosa_dist.tracking.store import StoreError, check_server, prepare_store

PATIENCE = 600.0
"""Seconds after which something that should happen is given up."""
LEAN_SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""keeps an MLflow server from starting half a dozen processes for jobs that nobody submits"""


class StageError(RuntimeError):
    """Something on the stage did not happen in time or ended by itself."""


def wait_until(done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Ask again and again until it is done.

    Raises:
        StageError: it was not done within `patience` seconds.
    """
    end = time.monotonic() + patience
    while not done():
        if time.monotonic() > end:
            raise StageError(f"{what} did not happen within {patience:g} s")
        time.sleep(0.05)


def start_mlflow_server(store: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start an MLflow server of few processes on the loopback, all in one process group of their own.

    Args:
        store: URI of its database.
        port: where it will listen.
        folder: for artifacts of new runs (`artifacts`) and its log (`tracker.log`).
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "tracker.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | LEAN_SERVER
        )


def await_mlflow_server(uri: str) -> None:
    """Wait until an MLflow server answers.

    Raises:
        StageError: it does not.
    """

    def answers() -> bool:
        with suppress(StoreError):
            check_server(uri, 1.0)
            return True
        return False

    wait_until(answers, "the start of the MLflow server")


class Stage:
    """A cluster, an MLflow server and at most one driver, as a context manager.

    Args:
        folder: for logs and the server's database.
        command: the training command, such as `[python, jobs/train.py]`.
        nodes: nodes with one CPU each.
    """

    def __init__(self, folder: Path, command: Sequence[str], nodes: int = 2) -> None:
        self.folder = folder
        self.command = list(command)
        self.number_of_nodes = nodes
        self.tracking_uri = f"http://127.0.0.1:{free_port()}"
        self.driver: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._return: threading.Timer | None = None
        self._cluster: Any = None
        self._dashboard = free_port()
        self._ending = ExitStack()

    def __enter__(self) -> Stage:
        """Start cluster and server."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # What frees a lost run's resources asks the dashboard; without the address it finds others' clusters.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{self._dashboard}"
        from ray.cluster_utils import Cluster

        self.folder.mkdir(parents=True, exist_ok=True)
        self._ending.callback(self._end)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": self._dashboard},
        )
        for _ in range(self.number_of_nodes):
            self.add_node()
        self._store = prepare_store(None, self.folder / "store")
        self.start_tracker()
        self.await_tracker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that was started here."""
        self._ending.close()

    def _end(self) -> None:
        self.kill_driver()
        self.kill_tracker()
        if self._cluster is not None:
            self._cluster.shutdown()
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)

    def add_node(self) -> None:
        """Add a node with one CPU."""
        self._cluster.add_node(num_cpus=1)

    def start_tracker(self) -> None:
        """Start the MLflow server, on the same port as before; `await_tracker` waits for it."""
        port = int(self.tracking_uri.rsplit(":", 1)[1])
        self._server = start_mlflow_server(self._store, port, self.folder)

    def await_tracker(self) -> None:
        """Wait until the MLflow server answers."""
        await_mlflow_server(self.tracking_uri)

    def start_driver(self, *arguments: str) -> None:
        """Start the training command against the cluster; its output goes to `driver.log`."""
        environment = os.environ | {
            "RAY_ADDRESS": self._cluster.address,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        with (self.folder / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                [*self.command, *arguments], stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def driver_output(self) -> str:
        """The end of what the drivers have said."""
        return (self.folder / "driver.log").read_text(errors="replace")[-3000:]

    def check_driver(self) -> None:
        """Raise `StageError` if the driver has ended."""
        if self.driver is None or self.driver.poll() is not None:
            raise StageError(f"the driver has ended: {self.driver_output()}")

    def workers(self) -> list[psutil.Process]:
        """The training workers' processes on all nodes."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
                if process.cmdline()[0].startswith("ray::RayTrainWorker"):
                    found.append(process)
        return found

    def kill_worker(self, chance: random.Random) -> None:
        """SIGKILL one worker."""

        def there() -> bool:
            self.check_driver()
            return bool(self.workers())

        wait_until(there, "the start of a worker")
        chance.choice(sorted(self.workers(), key=lambda process: process.pid)).kill()

    def kill_node(self, chance: random.Random) -> None:
        """Kill all processes of one node."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: str(node.unique_id))
        self._cluster.remove_node(chance.choice(nodes), allow_graceful=False)

    def kill_driver(self) -> None:
        """SIGKILL the driver and wait until Ray has ended its workers."""
        if self.driver is not None:
            _kill_session(self.driver)
            if self._cluster is not None and self._cluster.worker_nodes:
                wait_until(lambda: not self.workers(), "the end of a killed driver's workers")
        self.driver = None

    def kill_tracker(self, away: float | None = None) -> None:
        """SIGKILL the MLflow server; it is started again after `away` seconds, or not at all."""
        if self._return is not None:
            self._return.cancel()
            self._return.join()
            self._return = None
        if self._server is not None:
            _kill_session(self._server)
        self._server = None
        if away is not None:
            self._return = threading.Timer(away, self.start_tracker)
            self._return.start()


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process that leads a session, and its children in that session."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
