"""Fixtures that several packages' tests share, and how tests are spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.faults.cluster import FaultCluster

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"

# A busy machine is no failure: no test has a limit of time of its own.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loader of the reference numbers beside the project; skips where they are not."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("reference numbers (../shared/golden) are not beside the project")

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz") as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture
def shared_data() -> Path:
    """Folder of real photographs and weights beside the project; skips where it is not."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data (../shared/data) are not beside the project")
    return folder


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultCluster]:
    """The one Ray cluster of a test session: two nodes of one CPU and an MLflow server."""
    from tests.faults.cluster import FaultCluster

    with FaultCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def ray_nodes(shared_cluster: FaultCluster) -> Iterator[FaultCluster]:
    """The session's cluster, whole and without a driver, whatever a test before has killed."""
    shared_cluster.repair()
    yield shared_cluster
    shared_cluster.kill_driver()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `-n 2 --dist loadgroup`: tests of a file share a process, and so do those of a cluster.

    The two clusters, which take longest, come first, so that the processes end at about the same time.
    """
    on_the_cluster = {item.path for item in items if "shared_cluster" in getattr(item, "fixturenames", ())}
    groups = {
        item: "ray" if item.path in on_the_cluster else "slurm" if item.path.parent.name == "slurm" else ""
        for item in items
    }
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group or item.path.relative_to(PROJECT).as_posix()))
    items.sort(key=lambda item: ("ray", "slurm", "").index(groups[item]))
