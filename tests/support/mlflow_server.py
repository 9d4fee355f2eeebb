"""An MLflow server of few processes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from cosa_dist.tracking.store import StoreError, check_server
from tests.support.programs import wait_until

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""keeps an MLflow server from starting half a dozen processes for jobs that nobody submits"""


def start_mlflow_server(store: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start an MLflow server on the loopback, all in one process group of its own.

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
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | LEAN
        )


def await_mlflow_server(uri: str) -> None:
    """Wait until an MLflow server answers."""

    def answers() -> bool:
        with suppress(StoreError):
            check_server(uri, 1.0)
            return True
        return False

    wait_until(answers, "the start of the MLflow server")
