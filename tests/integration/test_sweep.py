"""A real sweep: trials through Ray Tune with ASHA, killed, taken up again, with a shared loss warm-up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cosa_dist.config.loading import load_config, to_yaml
from cosa_dist.distributed.sweep.trial import Trial, read_trials
from cosa_dist.distributed.worker import run_worker
from tests.faults.cluster import FaultCluster
from tests.integration.small_run import curve, make_shards, small_config, task_of
from tests.support.programs import command

pytestmark = pytest.mark.integration
SPACE = "losses.cam_to_seg: {grid: [0.5, 0.0, 0.1, 1.0]}\n"
"""a weight of 0 leaves the segmentation untrained, so some trial is worse than the first"""


def killed_sweep(cluster: FaultCluster, folder: Path) -> None:
    """Start a sweep in `folder` and kill it while its second trial runs."""
    config = small_config(
        make_shards(folder / "shards"),
        folder,
        "sweep",
        training={"steps": 12, "checkpoint_every": 3},
        losses={"warmup_steps": 3},
        evaluation={"every": 4, "pictures": 0},
        distributed={"workers": 1, "cpus_per_worker": 1},
    )
    (folder / "base.yaml").write_text(to_yaml(config))
    (folder / "space.yaml").write_text(SPACE)
    words = ("--space", str(folder / "space.yaml"), "--config", str(folder / "base.yaml"), "--warm-start")
    cluster.start_driver(*words, script="sweeps/run.py")

    def in_its_second_trial() -> bool:
        trials = read_trials(folder / "runs", "sweep")
        return len(trials) > 1 and any(trial.over for trial in trials)

    cluster.await_driver(in_its_second_trial, "the second trial")
    cluster.kill_driver()


@pytest.mark.nightly
def test_a_sweep_that_is_killed_goes_on_and_repeats_nothing(ray_nodes, tmp_path):
    killed_sweep(ray_nodes, tmp_path)
    runs = tmp_path / "runs"
    before = {t.name: t for t in read_trials(runs, "sweep") if t.over}
    assert 1 <= len(before) < 4
    resume = ("--resume", "sweep", "--output", str(tmp_path))
    # On a private cluster, through whose dashboard Ray frees a stopped trial's resources. In a process of its
    # own: where one had a Ray of its own, later drivers on a cluster were seen to lose their first actors.
    assert subprocess.run(command("sweeps/run.py", *resume), cwd=tmp_path, check=False).returncode == 0

    trials = {t.name: t for t in read_trials(runs, "sweep")}
    assert len(trials) == 4
    assert {name: trials[name] for name in before} == before
    assert {t.status for t in trials.values()} == {"finished", "pruned"}
    assert all(max(t.history) == 12 for t in trials.values() if t.status == "finished")
    assert all(max(t.history) < 12 for t in trials.values() if t.status == "pruned")
    # None of the trials trained the warm-up: their first line of log is the one after it.
    for name in trials:
        assert '"step": 3' not in (runs / name / "metrics.jsonl").read_text()
    check_tracking(tmp_path / "mlflow.db", trials)

    outcome = tmp_path / "sweeps" / "sweep"
    assert (outcome / "trials.csv").read_text().count("\n") == 5
    assert "Importance of the options" in (outcome / "sweep.html").read_text()
    # The best configuration trains its own warm-up and reaches the same, to the last bit.
    best = max((t for t in trials.values() if t.status == "finished"), key=lambda t: t.miou)
    again = load_config(None, str(outcome / "best.yaml"))
    run_worker(task_of(again, runs / "sweep-again", again.training.global_batch_size))
    assert curve(runs / "sweep-again", "final/miou_unfiltered") == [best.miou]


def check_tracking(store: Path, trials: dict[str, Trial]) -> None:
    """The sweep is the parent of its trials, each run ended as it should, each evaluation came once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("cosa")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = found.pop("sweep")
    assert parent.info.status == "FINISHED"
    assert found.pop("sweep-warmup").info.status == "KILLED"
    assert set(found) == set(trials)
    for name, run in found.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        # A trial as short as these may come to its end before the scheduler's kill reaches it.
        ends = ("FINISHED",) if trials[name].status == "finished" else ("KILLED", "FINISHED")
        assert run.info.status in ends
        for key in ("val/miou_unfiltered", "final/miou_unfiltered"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert steps == sorted(set(steps))
        evaluated = client.get_metric_history(run.info.run_id, "val/miou_unfiltered")
        assert len(evaluated) >= sum(step < 12 for step in trials[name].history)


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path):
    from cosa_dist.config.errors import ConfigError
    from cosa_dist.distributed.sweep.run import concurrent_trials

    config = small_config(tmp_path, tmp_path, "sweep", distributed={"workers": 2, "cpus_per_worker": 1})
    assert concurrent_trials(config, [{"CPU": 6}]) == 2
    with pytest.raises(ConfigError, match=r"needs 3 CPUs \(1 driver \+ 2 workers x 1\)"):
        concurrent_trials(config, [{"CPU": 2}])
