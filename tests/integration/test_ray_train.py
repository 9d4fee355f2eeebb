"""The real path on a private cluster: Ray Train with two workers, Accelerate, HF datasets and MLflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.integration.small_run import curve, make_shards, small_config, task_of

pytestmark = pytest.mark.integration
CALLER = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 7).remote()))"


@pytest.fixture(scope="module")
def cluster():
    from cosa_dist.distributed.cluster import PRIVATE, ray_cluster

    before = {name: os.environ.get(name) for name in PRIVATE}
    with ray_cluster(num_cpus=2) as resources:
        yield resources
    # Its settings are not those of a Ray that this process starts or joins later.
    assert {name: os.environ.get(name) for name in PRIVATE} == before


def test_two_workers_do_what_one_does_and_mlflow_knows_it(cluster, tmp_path):
    from mlflow import MlflowClient

    from cosa_dist.config.errors import ConfigError
    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run, reopen
    from cosa_dist.distributed.run_folder import RunFolder
    from cosa_dist.distributed.worker import run_worker

    shards = make_shards(tmp_path / "shards")
    two = small_config(shards, tmp_path, "two", distributed={"workers": 2, "cpus_per_worker": 1})
    outcome = launch(prepare_run(two), cluster)
    alone = tmp_path / "alone"
    reports = run_worker(task_of(small_config(shards, tmp_path, "alone"), alone, 4))

    for name in ("total", "classification", "cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy"):
        torch.testing.assert_close(
            torch.tensor(curve(outcome.folder, f"train/{name}")),
            torch.tensor(curve(alone, f"train/{name}")),
            rtol=2e-3,
            atol=2e-4,
            msg=name,
        )
    assert outcome.reports["online"].images == reports["online"].images == 11
    run = MlflowClient(outcome.tracking_uri).get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "10"
    assert run.data.tags["dataset"] == "synthetic"
    assert "learning from image tags" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["final/online/miou_unfiltered"] == pytest.approx(
        outcome.reports["online"].miou("unfiltered")
    )
    with pytest.raises(ConfigError, match="is finished"):
        reopen(RunFolder.of(two), {})
    with pytest.raises(ConfigError, match="already in"):
        prepare_run(two)


def test_a_run_that_cannot_be_placed_is_given_up_with_the_arithmetic(cluster, tmp_path):
    from cosa_dist.config.errors import ConfigError
    from cosa_dist.distributed.launch import launch
    from cosa_dist.distributed.prepare import prepare_run

    shards = make_shards(tmp_path / "shards")
    config = small_config(
        shards, tmp_path, "huge", distributed={"workers": 4, "cpus_per_worker": 8, "placement_deadline": 1}
    )
    with pytest.raises(
        ConfigError, match=r"needs 32 CPU \(4 workers of 8 CPU each\), the Ray cluster has 2 CPU"
    ):
        launch(prepare_run(config), cluster)


@pytest.mark.parametrize(
    ("token", "answer"),
    [
        ({"RAY_AUTH_MODE": "token"}, ["7"]),
        ({"RAY_AUTH_MODE": "disabled"}, []),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, []),
    ],
    ids=["own token", "no token", "wrong token"],
)
def test_only_the_holder_of_the_token_gets_in(cluster, token, answer):
    """Ray's ports are open to the network: the token stands between them and other people's code."""
    import ray

    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "RAY_JOB"))}
    done = subprocess.run(
        [sys.executable, "-c", CALLER, ray.get_runtime_context().gcs_address],
        env=clean | token,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == bool(answer), done.stderr[-2000:]
    assert [word for word in done.stdout.split() if word == "7"] == answer
