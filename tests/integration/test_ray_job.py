"""`ray job submit` to a cluster that asks for tokens: submit, follow the log, stop, resume."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from cosa_dist.config.loading import build_config, merge, to_yaml
from cosa_dist.distributed.cluster import free_port
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.tracking.mlflow_runs import connect
from tests.integration.small_run import SETTINGS, curve, make_shards
from tests.support.programs import PROJECT, kill_family, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.integration]

BIN = Path(sys.executable).parent
STEPS = 800
# As `ray start --head`, but without its server for ray:// addresses: it gives its node 30 s to register, and
# ends the head on a busy machine.
HEAD = """
import json, signal, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]))
signal.pause()
"""
Ray = Callable[..., subprocess.CompletedProcess[str]]


def answers(port: int) -> bool:
    """Whether somebody listens there: cheaper to ask than by Ray's command."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def ray_command() -> Iterator[Ray]:
    """A head node of its own that asks for a token, and the `ray` command of a user who has it."""
    home = Path(mkdtemp(prefix="r"))  # short, as Ray's sockets lie in it
    dashboard, agent = free_port(), free_port()
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(home),  # the address that a job is given stands in a file there
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)

    def ray(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *words],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            cwd=PROJECT,
            env=environment | changes,
        )

    # The agent starts the jobs; its usual port may belong to another Ray on this machine.
    head_node = {
        "num_cpus": 2,
        "include_dashboard": True,
        "dashboard_port": dashboard,
        "dashboard_agent_listen_port": agent,
    }
    command = [sys.executable, "-c", HEAD, json.dumps(head_node)]
    with (home / "head.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_until(lambda: answers(dashboard) or head.poll() is not None, "the start of Ray")
        assert head.poll() is None, (home / "head.log").read_text()
        wait_until(lambda: ray("job", "list").returncode == 0, "the start of Ray's jobs")
        yield ray
    finally:
        kill_family(head)
        shutil.rmtree(home, ignore_errors=True)


def submit(ray: Ray, checkout: Path, job: str, *words: str) -> None:
    environment = json.dumps({"env_vars": {"COSA_GIT_COMMIT": "0" * 40, "OMP_NUM_THREADS": "1"}})
    arguments = [
        "--working-dir",
        str(checkout),
        "--runtime-env-json",
        environment,
        "--submission-id",
        job,
        "--no-wait",
    ]
    said = ""

    def submitted() -> bool:
        nonlocal said
        done = ray("job", "submit", *arguments, "--", "python", "jobs/train.py", *words)
        said = done.stdout + done.stderr
        # The head answers some seconds before it can run jobs.
        assert done.returncode == 0 or "No available agent" in said, said
        return done.returncode == 0

    wait_until(submitted, "the submission")


def status(folder: Path) -> str:
    note = RunFolder(folder).read_note()
    return connect(note.tracking_uri).get_run(note.run_id).info.status


def test_a_job_is_submitted_followed_stopped_and_resumed(ray_command, tmp_path):
    ray = ray_command
    refused = ray("job", "list", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()

    # A copy, since other tools write their caches into the project's folder.
    checkout = tmp_path / "checkout"
    for part in ("cosa_dist", "jobs"):
        shutil.copytree(PROJECT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    make_shards(tmp_path / "shards")
    changes = {
        "name": "submitted",
        "output": str(tmp_path),
        "data": {"shards": str(tmp_path / "shards")},
        "training": {"steps": STEPS},
        "distributed": {"workers": 1, "cpus_per_worker": 1},
    }
    (tmp_path / "run.yaml").write_text(to_yaml(build_config(merge(SETTINGS, changes))))
    folder = tmp_path / "runs" / "submitted"

    submit(ray, checkout, "first", "--config", str(tmp_path / "run.yaml"))
    wait_until(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    # At once: the job is short, and each call of the command takes seconds.
    stopped = ray("job", "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert f"step 3/{STEPS}" in ray("job", "logs", "first").stdout
    assert "Job 'first' was stopped" in ray("job", "status", "first").stdout
    assert status(folder) == "KILLED"
    reached = len(curve(folder, "train/total"))
    assert 5 <= reached < STEPS
    time.sleep(2)
    assert len(curve(folder, "train/total")) <= reached + 1

    submit(ray, checkout, "second", "--resume", "submitted", "--output", str(tmp_path))
    wait_until(lambda: RunFolder(folder).read_note().finished, "the end of the resumed job")
    assert "continuing from step-" in ray("job", "logs", "second").stdout
    assert status(folder) == "FINISHED"
    assert len(curve(folder, "train/total")) == STEPS
