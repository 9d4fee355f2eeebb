"""A cluster of two nodes for this folder's tests, and a training that takes a minute at most."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cosa_dist.config.loading import merge
from tests.integration.small_run import SETTINGS, make_shards
from tests.slurm.client import PROJECT, Cluster
from tests.slurm.cluster import down, sweep, up
from tests.slurm.machine import obstacle

SHORT = {
    "training": {"steps": 3, "checkpoint_every": 2},
    "evaluation": {"scales": [1.0], "pictures": 0},
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; their shared folder looks like the project's, but `outputs` is its own."""
    if reason := obstacle():
        pytest.skip(reason)
    sweep()
    name = f"t{os.getpid()}"
    cluster = up(name, nodes=2)
    try:
        for part in ("slurm", "jobs", "sweeps", "cosa_dist", "pyproject.toml"):
            (cluster.work / part).symlink_to(PROJECT / part)
        yield cluster
    finally:
        down(name)


@pytest.fixture(scope="session")
def options(cluster: Cluster) -> tuple[str, ...]:
    """Options of jobs/train.py for a tiny training on generated pictures."""
    shards: Path = make_shards(cluster.work / "shards")
    settings = cluster.work / "tiny.yaml"
    settings.write_text(yaml.safe_dump(merge(SETTINGS, SHORT)))
    return ("--config", str(settings), "--data.shards", str(shards))
