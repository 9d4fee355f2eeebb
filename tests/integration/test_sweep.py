"""A real sweep: two trials through Ray Tune, each a Ray Train run, children of one MLflow run."""

from __future__ import annotations

import pytest

from tests.integration.small_run import make_shards, small_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_two_trials_and_the_best_configuration(tmp_path):
    from mlflow import MlflowClient

    from cosa_dist.config.loading import load_config
    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.search_space import read_space, tune_space
    from cosa_dist.distributed.sweep import METRIC, run_sweep

    shards = make_shards(tmp_path / "shards")
    base = small_config(
        shards,
        tmp_path,
        "sweep",
        training={"steps": 4, "checkpoint_every": 4},
        distributed={"workers": 1, "cpus_per_worker": 1},
    )
    file = tmp_path / "space.yaml"
    file.write_text("losses.cam_to_seg: {grid: [0.1, 0.5]}\n")
    with ray_cluster(num_cpus=2) as resources:
        result = run_sweep(base, tune_space(read_space(file)), 1, "none", resources)

    assert sorted(row["losses.cam_to_seg"] for row in result.rows) == [0.1, 0.5]
    assert result.rows[0][METRIC] >= result.rows[1][METRIC]
    best = load_config(None, str(result.best_config))
    assert best.losses.cam_to_seg == result.rows[0]["losses.cam_to_seg"]
    assert best.training.steps == 4
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cosa")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == result.parent_run_id]
    assert {run.data.params["losses.cam_to_seg"] for run in children} == {"0.1", "0.5"}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path):
    from cosa_dist.config.errors import ConfigError
    from cosa_dist.distributed.sweep import concurrent_trials

    config = small_config(tmp_path, tmp_path, "sweep", distributed={"workers": 2, "cpus_per_worker": 1})
    assert concurrent_trials(config, {"CPU": 6}) == 2
    with pytest.raises(ConfigError, match=r"needs 3 CPUs \(1 driver \+ 2 workers x 1\)"):
        concurrent_trials(config, {"CPU": 2})
