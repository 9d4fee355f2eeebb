"""Faults of a run through the command: signals, a busy cluster, a lost node with elastic workers."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from cosa_dist.config.loading import build_config, merge, to_yaml
from cosa_dist.distributed.worker import run_worker
from cosa_dist.tracking.mlflow_runs import connect
from cosa_dist.training.checkpoint_files import checkpoints, read_checkpoint
from tests.faults.chaos import last_step
from tests.faults.cluster import FaultCluster
from tests.integration.small_run import (
    SETTINGS,
    PulledPlugError,
    curve,
    make_shards,
    small_config,
    task_of,
    watch,
)
from tests.support.programs import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_shards(folder / "shards")
    return folder


def start(cluster: FaultCluster, base: Path, name: str, **sections) -> Path:
    """Start a run of the small configuration; return its folder."""
    place = {
        "name": name,
        "output": str(base),
        "data": {"shards": str(base / "shards")},
        "tracking": {"uri": cluster.tracking_uri},
        "distributed": {"workers": 1, "cpus_per_worker": 1},
    }
    path = base / f"{name}.yaml"
    path.write_text(to_yaml(build_config(merge(merge(SETTINGS, place), sections))))
    cluster.start_driver("--config", str(path))
    return base / "runs" / name


def reach(cluster: FaultCluster, folder: Path, step: int) -> None:
    cluster.await_driver(lambda: last_step(folder) >= step, f"step {step}")


def status(cluster: FaultCluster, name: str) -> str:
    client = connect(cluster.tracking_uri)
    experiment = client.get_experiment_by_name("cosa")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run.info.status


def test_signals_end_a_run_with_the_right_status_and_resume_goes_on(ray_nodes, base):
    folder = start(ray_nodes, base, "stopped", training={"steps": 400, "checkpoint_every": 50})
    reach(ray_nodes, folder, 3)
    os.kill(ray_nodes.driver.pid, signal.SIGUSR1)
    assert ray_nodes.driver.wait(120) == 130, ray_nodes.driver_output()
    # SIGUSR1: a checkpoint off the schedule of every fifty steps, at the line of log it came to.
    (kept,) = checkpoints(folder / "checkpoints")
    step = read_checkpoint(kept)["step"]
    assert step == last_step(folder) < 50
    assert status(ray_nodes, "stopped") == "KILLED"

    ray_nodes.start_driver("--resume", "stopped", "--output", str(base))
    reach(ray_nodes, folder, step + 1)
    assert status(ray_nodes, "stopped") == "RUNNING"
    started = time.monotonic()
    os.kill(ray_nodes.driver.pid, signal.SIGTERM)
    assert ray_nodes.driver.wait(120) == 130
    assert time.monotonic() - started < 60
    assert status(ray_nodes, "stopped") == "KILLED"
    wait_until(lambda: not ray_nodes.workers(), "the end of the workers", 60)


def test_resources_that_others_hold_are_given_up_after_the_deadline(ray_nodes, base):
    import ray

    with ray_nodes.joined():
        # Both nodes have one CPU each, and this holds one of them: the totals suffice for two workers.
        @ray.remote(num_cpus=1)
        class Other:
            def here(self) -> bool:
                return True

        other = Other.remote()
        assert ray.get(other.here.remote())
        start(ray_nodes, base, "waiting", distributed={"workers": 2, "placement_deadline": 15})
        assert ray_nodes.driver.wait(200) == 1
    assert "needs 2 CPU (2 workers of 1 CPU each)" in ray_nodes.driver_output()
    assert "free at the moment: 1 CPU" in ray_nodes.driver_output()
    assert status(ray_nodes, "waiting") == "FAILED"


@pytest.mark.nightly
def test_elastic_workers_go_down_and_up_with_the_nodes(ray_nodes, base):
    """Of [1, 3] workers, two nodes hold two; one is left after a loss, and two are there again later."""
    elastic = {"workers": [1, 3], "cpus_per_worker": 1, "max_failures": 9, "placement_deadline": 200}
    length = {"training": {"steps": 2000, "checkpoint_every": 10}}
    folder = start(ray_nodes, base, "elastic", **length, distributed=elastic)

    def workers() -> int:
        found = checkpoints(folder / "checkpoints") if folder.is_dir() else []
        return read_checkpoint(found[-1])["workers"] if found else 0

    wait_until(lambda: workers() == 2, "a checkpoint of two workers")
    ray_nodes.kill_node(random.Random(0))
    wait_until(lambda: workers() == 1, "a checkpoint of one worker")
    fewer = last_step(folder)
    ray_nodes.add_node()
    wait_until(lambda: workers() == 2, "a checkpoint of two workers again")
    os.kill(ray_nodes.driver.pid, signal.SIGUSR1)
    assert ray_nodes.driver.wait(120) == 130, ray_nodes.driver_output()

    # Samples and their order are the same, whatever the number of workers; rounding is not.
    count = min(fewer, 60)
    alone = base / "alone"
    samples: dict[int, list[str]] = {}
    task = task_of(small_config(base / "shards", base, "alone", **length), alone, 4)
    with pytest.raises(PulledPlugError):
        run_worker(task, on_step=watch(samples, count + 1))
    for name in ("classification", "seg_to_cam"):
        found, expected = (torch.tensor(curve(run, f"train/{name}")[:count]) for run in (folder, alone))
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3, msg=name)
