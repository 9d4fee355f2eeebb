"""The Ray cluster of a run: the one that `RAY_ADDRESS` names, or a private one on this machine.

Jobs (`ray job submit`) and SLURM scripts set `RAY_ADDRESS`. Without it a local Ray is started; an address
left behind by somebody else's cluster on the same host is never joined by accident. Ray itself tries a dead
address for many minutes, deaf to Ctrl-C, so it is asked only for one that answers.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cosa_dist.config.errors import ConfigError
from cosa_dist.tracking.provenance import usable_cpus

WORKER_ENVIRONMENT = {
    # Pictures of all sizes are evaluated between steps: without it memory falls to pieces. (A user's own
    # setting by the old name, PYTORCH_CUDA_ALLOC_CONF, wins over this one.)
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # DDP takes the network's own device: with more than ten GPUs on a node, or slices of them, Ray and
    # Accelerate number them differently.
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    # For what libraries fork from a process that has registered memory with InfiniBand or EFA. Loader
    # processes beside a GPU come from a fork server, which has not.
    "RDMAV_FORK_SAFE": "1",
    "IBV_FORK_SAFE": "1",
    "FI_EFA_FORK_SAFE": "1",
}
"""for processes that train; a worker sets what its node's Ray was started without"""
ENVIRONMENT = {
    **WORKER_ENVIRONMENT,
    # As in cosa_dist/__init__.py, but some of Ray's processes load torch first.
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
    "RAY_USAGE_STATS_ENABLED": "0",
}
PRIVATE = {
    # There is no preemption on this machine, and the watcher's start prints an alarming line.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # What a dashboard would show takes time from training.
    "RAY_enable_metrics_collection": "false",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
}
"""on top of it, for a cluster that only this process uses"""
_alone: list[bool] = []
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""the question that Ray's head answers whatever its state"""
SOCKET_BYTES = 107
"""longest path of a socket on Linux"""
LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_{pid}/sockets/dash_TaskEventsHead"
"""below Ray's folder of temporary files"""


def prepare_environment() -> None:
    """Set what workers find in their environment, and PyTorch at its import; what is set already stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def machine_resources() -> dict[str, float]:
    """CPUs and GPUs of this machine, as Ray would count them."""
    import torch

    return {"CPU": float(usable_cpus()), "GPU": float(torch.cuda.device_count())}


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_start(seconds: float = 10.0) -> None:
    """Refuse what would keep `ray_cluster` from starting or joining Ray, after at most a few `seconds`.

    Raises `ConnectionError` if the address in `RAY_ADDRESS` is not that of a Ray cluster that answers, and
    `ConfigError` if Ray cannot work in this environment.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        if reason := _why_no_cluster(address, seconds):
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {reason}; start the cluster, mend the "
                "address (HOST:PORT of `ray start --head`), or unset RAY_ADDRESS to use this machine alone"
            )
        return
    from ray._common.utils import get_default_ray_temp_dir

    folder = get_default_ray_temp_dir()
    longest = os.path.join(folder, LONGEST_SOCKET.format(pid=os.getpid()))
    over = len(os.fsencode(longest)) - SOCKET_BYTES
    if over > 0:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        raise ConfigError(
            f"{name} is too long by {over} bytes: Ray keeps sockets below {folder}, and their paths end at "
            f"{SOCKET_BYTES}; set RAY_TMPDIR to a short folder on a local disk, such as /tmp"
        )


def _why_no_cluster(address: str, seconds: float) -> str:
    """Why no Ray cluster can be joined at an address; empty if one answers."""
    import grpc
    from ray._private.services import canonicalize_bootstrap_address

    scheme, _, place = address.rpartition("://")
    if scheme in ("http", "https"):
        return f"{scheme}:// is the form for `ray job submit`"
    has_form = place == "auto" or (":" in place[1:] and place.rpartition(":")[2].isdecimal())
    if scheme not in ("", "ray") or not has_form:
        return "it is not of the form HOST:PORT"
    try:
        place = place if scheme else str(canonicalize_bootstrap_address(place))
        host, _, port = place.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError, OverflowError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=seconds)
        except grpc.RpcError as error:
            return _why_refused(error.code(), address)
    return ""


def _why_refused(code: Any, address: str) -> str:
    """What a failed question's gRPC status says; empty if something of Ray answered."""
    match code.name:
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            # This question sends no token; Ray does, if it is told to or has found the cluster itself.
            sent = address == "auto" or os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
            return "" if sent else "it asks for a token: set RAY_AUTH_MODE=token in the environment"
        case "UNIMPLEMENTED" if address.startswith("ray://"):
            return ""  # the server of ray:// is not the head
        case "UNIMPLEMENTED":
            return "it is no head of Ray (its port is 6379 unless chosen otherwise)"
    return f"something else listens there, or it hangs ({code.name.lower()})"


def is_alone() -> bool:
    """Whether this process has started a private cluster without a dashboard, which ends with it."""
    return bool(_alone)


@contextmanager
def ray_cluster(**local_options: Any) -> Iterator[dict[str, float]]:
    """Join or start Ray, yield its total resources, and leave it as it was found.

    `local_options` are arguments of `ray.init` for a private cluster (such as `num_cpus`); it has a dashboard
    only if asked to (a sweep needs one: Ray frees a stopped trial's resources through it). Raises what
    `check_start` raises, and `ConnectionError` if Ray could not start for another reason.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    check_start()
    address = os.environ.get("RAY_ADDRESS", "")
    private = address in ("", "local")
    added = PRIVATE.keys() - os.environ.keys() if private else set()
    try:
        if private:
            _start_private(local_options)
        else:
            ray.init(log_to_driver=True)
    except Exception as error:  # Ray's own errors are of many kinds
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        where = "Ray cannot start here" if private else f"no Ray cluster answers at RAY_ADDRESS={address}"
        raise ConnectionError(f"{where}: {reason}") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
        _alone.clear()
        if private:
            # What suits a private cluster is not for one that this process starts or joins later.
            for name in ("RAY_API_SERVER_ADDRESS", *added):
                os.environ.pop(name, None)


def _start_private(options: dict[str, Any]) -> None:
    import ray

    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
    given = {"num_cpus": usable_cpus(), "include_dashboard": False, **options}
    if given["include_dashboard"]:
        port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        given |= {"dashboard_host": "127.0.0.1", "dashboard_port": port}
    ray.init(address="local", logging_level=logging.ERROR, **given)
    if not given["include_dashboard"]:
        _alone.append(True)
