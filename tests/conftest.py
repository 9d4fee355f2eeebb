"""Fixtures that several packages' tests share, and how tests are spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.support.programs import Done, run_here

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


@pytest.fixture
def run_job(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a script of the project with words in this process, from the present folder."""

    def run(script: str, *words: object) -> Done:
        capsys.readouterr()
        code = run_here(script, *map(str, words))
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


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


@cache
def group_of(path: Path) -> str:
    """Tests of one group run in one process: those of a cluster or a store, and otherwise those of a file."""
    if path.parent.name in ("slurm", "tracking"):
        return path.parent.name
    text = path.read_text(encoding="utf-8")
    return "ray" if "ray_nodes" in text or "shared_cluster" in text else str(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The clusters, which take longest, come first, so that processes end at about the same time."""
    items.sort(key=lambda item: group_of(item.path) not in ("ray", "slurm"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread groups over the processes of `-n N`."""
    # `--dist loadgroup` has no effect with pytest 9.2: pytest-xdist issue 1386.
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return LoadGroups(config, log)
