"""The Ray cluster of a run: the one that `RAY_ADDRESS` names, or a private one on this machine.

Jobs (`ray job submit`) and SLURM scripts set `RAY_ADDRESS`. Without it a local Ray is started; an address
left behind by somebody else's cluster on the same host is never joined by accident.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    # Threads that wait for each other should sleep: spinning starves them on a machine with other work.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray lowers its workers' priority; on a private cluster they are the work itself.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # After a lost node Ray first tries the old number of workers for so many seconds (its default is 60).
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # DDP warns that it looks for unused parameters; in the loss warm-up the decoder is unused.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "RAY_USAGE_STATS_ENABLED": "0",
}
PRIVATE = {
    # Nobody preempts this machine, and the watcher's start prints an alarming line.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Nobody looks at a private cluster's dashboard; gathering what it shows takes time from training.
    "RAY_enable_metrics_collection": "false",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
}
"""on top of it, for a cluster that only this process uses"""


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_cluster(**local_options: Any) -> Iterator[dict[str, float]]:
    """Join or start Ray, yield its total resources, and leave it as it was found.

    Args:
        local_options: arguments of `ray.init` for a private cluster (such as `num_cpus`).

    Raises:
        ConnectionError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(log_to_driver=True)
        except ConnectionError as error:
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {' '.join(str(error).split())}"
            ) from None
    else:
        # Ray frees a stopped run's resources through its State API, which the dashboard serves.
        port = free_port()
        for name, value in PRIVATE.items():
            os.environ.setdefault(name, value)
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        ray.init(
            address="local",
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.ERROR,
            **{"num_cpus": os.cpu_count(), "include_dashboard": True, **local_options},
        )
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)
