"""A run's private Ray cluster is nobody else's: who has not its token is not let in.

Ray's ports are open to the network, so this is what stands between them and other people's code.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from cosa_dist.distributed.cluster import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.integration]

CALLER = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 7).remote()))"


def call(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a task on the cluster from a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "RAY_JOB"))}
    return subprocess.run(
        [sys.executable, "-c", CALLER, address],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_only_the_holder_of_the_token_gets_in():
    with ray_cluster():
        address = ray.get_runtime_context().gcs_address
        for stranger in (
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        ):
            refused = call(address, **stranger)
            assert refused.returncode != 0
            assert "7" not in refused.stdout.split()
        assert call(address, RAY_AUTH_MODE="token").stdout.split() == ["7"]
