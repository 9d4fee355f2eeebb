"""A small cluster on this machine with everything on it that may be killed: workers, nodes, driver, tracker.

Each node is a Ray node with one CPU, so that two workers sit on two nodes. A driver is the real command in a
process of its own; jobs in this process join the cluster with `joined`. All of it ends with the cluster.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import psutil

from cosa_dist.distributed.cluster import ENVIRONMENT, free_port, ray_cluster
from cosa_dist.tracking.store import prepare_store
from tests.support.mlflow_server import await_mlflow_server, start_mlflow_server
from tests.support.programs import NotInTimeError, command, run_here, wait_until

OF_RAY = (
    "IDLE",
    "DashboardAgent",
    "RuntimeEnvAgent",
    "_AutoscalingCoordinatorActor",
    "PlacementGroupCleaner",
)
"""what Ray itself keeps running between drivers"""


class FaultCluster:
    """A Ray head, nodes of one CPU, an MLflow server and at most one driver, as a context manager.

    Args:
        folder: for logs and the server's database.
        nodes: number of nodes beside the head, which has no CPU.
    """

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        self.nodes = nodes
        self.tracking_uri = f"http://127.0.0.1:{free_port()}"
        self.driver: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._return: threading.Timer | None = None
        self._cluster: Any = None
        self._dashboard = free_port()
        self._ending = ExitStack()

    def __enter__(self) -> FaultCluster:
        """Start cluster and server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ending.callback(self._end)
        with self._environment():
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": self._dashboard}
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._store = prepare_store(None, self.folder / "store")
        self.start_tracker()
        self.repair()
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

    @contextmanager
    def _environment(self, **more: str) -> Iterator[None]:
        # What frees a lost run's resources asks the dashboard; without the address it finds others' clusters.
        own = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self._dashboard}", **more}
        with patch.dict(os.environ, ENVIRONMENT | own):
            yield

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The Ray of this process is the cluster's."""
        with self._environment(RAY_ADDRESS=self._cluster.address), ray_cluster():
            yield

    def run_here(self, *words: str, script: str = "jobs/train.py") -> int:
        """Run a job to its end with this process as its driver; return its exit code."""
        with self.joined():
            return run_here(script, *words)

    def repair(self) -> None:
        """End a driver that was left, and bring back lost nodes and the MLflow server."""
        self.kill_driver()
        while len(self._cluster.worker_nodes) < self.nodes:
            self.add_node()
        if self._server is None:
            self.start_tracker()
        self.await_tracker()

    def add_node(self) -> None:
        """Add a node with one CPU."""
        with self._environment():
            self._cluster.add_node(num_cpus=1)

    def start_tracker(self) -> None:
        """Start the MLflow server, on the same port as before; `await_tracker` waits for it."""
        port = int(self.tracking_uri.rsplit(":", 1)[1])
        self._server = start_mlflow_server(self._store, port, self.folder)

    def await_tracker(self) -> None:
        """Wait until the MLflow server answers."""
        await_mlflow_server(self.tracking_uri)

    def start_driver(self, *words: str, script: str = "jobs/train.py") -> None:
        """Start a job against the cluster; its output goes to `driver.log`."""
        variables = {"RAY_ADDRESS": self._cluster.address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        with self._environment(**variables), (self.folder / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command(script, *words), stdout=log, stderr=log, start_new_session=True
            )

    def driver_output(self) -> str:
        """The end of what the drivers have said."""
        return (self.folder / "driver.log").read_text(errors="replace")[-3000:]

    def check_driver(self) -> None:
        """Raise `NotInTimeError` if the driver has ended."""
        if self.driver is None or self.driver.poll() is not None:
            raise NotInTimeError(f"the driver has ended: {self.driver_output()}")

    def await_driver(self, done: Callable[[], bool], what: str) -> None:
        """Wait until the driver has done something; `NotInTimeError` if it ends before."""

        def reached() -> bool:
            if done():
                return True
            self.check_driver()
            return False

        wait_until(reached, what)

    def workers(self) -> list[psutil.Process]:
        """The training workers' processes on all nodes."""
        return [process for name, process in self._ray_processes() if name == "RayTrainWorker"]

    def is_idle(self) -> bool:
        """Whether no driver's task or actor is left on the nodes."""
        return all(name in OF_RAY for name, _ in self._ray_processes())

    def _ray_processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """What each process of Ray works on, up to the first dot."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
                if found := re.match(r"ray::(\w+)", process.cmdline()[0]):
                    yield found.group(1), process

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL one worker."""
        self.await_driver(lambda: bool(self.workers()), "the start of a worker")
        rng.choice(sorted(self.workers(), key=lambda process: process.pid)).kill()

    def kill_node(self, rng: random.Random) -> None:
        """Kill all processes of one node."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: str(node.unique_id))
        self._cluster.remove_node(rng.choice(nodes), allow_graceful=False)

    def kill_driver(self) -> None:
        """SIGKILL the driver and wait until Ray has ended its workers and tasks."""
        if self.driver is not None:
            _kill_session(self.driver)
            if self._cluster is not None and self._cluster.worker_nodes:
                wait_until(self.is_idle, "the end of a killed driver's workers")
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
