"""A real sweep: trials through Ray Tune with ASHA, killed, taken up again, with a shared loss warm-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cosa_dist.config.loading import load_config, to_yaml
from cosa_dist.distributed.sweep.trial import Trial, read_trials
from cosa_dist.distributed.worker import run_worker
from tests.integration.small_run import curve, make_shards, small_config, task_of

pytestmark = pytest.mark.integration
PROJECT = Path(__file__).resolve().parents[2]
SPACE = "losses.cam_to_seg: {grid: [0.5, 0.0, 0.1, 1.0]}\n"
"""a weight of 0 leaves the segmentation untrained, so some trial is worse than the first"""


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(PROJECT / script), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def killed_sweep(folder: Path) -> None:
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
    options = ["--space", str(folder / "space.yaml"), "--config", str(folder / "base.yaml"), "--warm-start"]
    words = folder / "first.txt"
    with words.open("w") as output:
        sweep = subprocess.Popen(
            command("sweeps/run.py", *options),
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(lambda: any(t.over for t in read_trials(folder / "runs", "sweep")), sweep, words)
        wait_for(lambda: len(read_trials(folder / "runs", "sweep")) > 1, sweep, words)
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()


def finish(folder: Path, script: str, *arguments: str) -> None:
    """Run a job to its end; fails with its last words."""
    done = subprocess.run(
        command(script, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_repeats_nothing(tmp_path):
    killed_sweep(tmp_path)
    runs = tmp_path / "runs"
    before = {t.name: t for t in read_trials(runs, "sweep") if t.over}
    assert 1 <= len(before) < 4
    finish(tmp_path, "sweeps/run.py", "--resume", "sweep", "--output", str(tmp_path))

    trials = {t.name: t for t in read_trials(runs, "sweep")}
    assert len(trials) == 4
    assert {name: trials[name] for name in before} == before
    assert {t.status for t in trials.values()} == {"finished", "pruned"}
    assert all(t.history[-1].step == 12 for t in trials.values() if t.status == "finished")
    assert all(t.history[-1].step < 12 for t in trials.values() if t.status == "pruned")
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
        assert len(evaluated) >= sum(entry.step < 12 for entry in trials[name].history)


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], words: Path, seconds: float = 420
) -> None:
    """Until the condition holds; fails with the process's words if it ends or time is up."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, words.read_text()[-3000:]
        assert time.monotonic() < end, words.read_text()[-3000:]
        time.sleep(0.2)


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path):
    from cosa_dist.config.errors import ConfigError
    from cosa_dist.distributed.sweep.run import concurrent_trials

    config = small_config(tmp_path, tmp_path, "sweep", distributed={"workers": 2, "cpus_per_worker": 1})
    assert concurrent_trials(config, [{"CPU": 6}]) == 2
    with pytest.raises(ConfigError, match=r"needs 3 CPUs \(1 driver \+ 2 workers x 1\)"):
        concurrent_trials(config, [{"CPU": 2}])
