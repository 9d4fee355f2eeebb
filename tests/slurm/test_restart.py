"""Jobs that SLURM ends early and starts again: the same run goes on, and its record has no seam."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cosa_dist.tracking.mirror import METRICS_FILE, read_metrics
from tests.faults.chaos import last_step, tracked
from tests.slurm.client import TWO_NODES, Cluster, JobState, wait_until
from tests.slurm.cluster import lose_node, return_node
from tests.slurm.test_cosa_job import DEADLINE, assert_nothing_is_left

pytestmark = [pytest.mark.slow, pytest.mark.integration]
STEPS = 200
LONG = ("--training.steps", str(STEPS), "--training.checkpoint_every", "10")


def await_step(cluster: Cluster, job: str, folder: Path, step: int) -> None:
    """Wait until a run's own record shows a step, or the job has ended."""

    def reached() -> bool:
        return (folder.is_dir() and last_step(folder) >= step) or cluster.state(job).ended

    wait_until(reached, DEADLINE, lambda: cluster.story(job))
    assert not cluster.state(job).ended, cluster.story(job)


def print_pause(folder: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the longest time between two lines of a run's record: what the interruption has cost."""
    times = [line.time_ms / 1000 for line in read_metrics(folder / METRICS_FILE)]
    pause = max(after - before for before, after in pairwise(times))
    with capsys.disabled():
        print(f"\n{what}: {pause:.0f} s from the last step to the next one")


def tracking_run(folder: Path) -> Run:
    """A run's record in the tracking store."""
    note = json.loads((folder / "run.json").read_text())
    return MlflowClient(note["tracking_uri"]).get_run(note["run_id"])


def assert_one_whole_run(folder: Path, steps: int) -> None:
    """The run has ended well; the store has it once, and every step of it once."""
    note = json.loads((folder / "run.json").read_text())
    run = tracking_run(folder)
    assert note["finished"]
    assert run.info.status == "FINISHED"
    history = tracked(note["tracking_uri"], note["run_id"])["train/total"]
    assert [step for step, _ in history] == list(range(1, steps + 1))
    client = MlflowClient(note["tracking_uri"])
    same = client.search_runs([run.info.experiment_id], f"attributes.run_name = '{folder.name}'")
    assert len(same) == 1


def shorten(cluster: Cluster, job: str) -> None:
    """Give a running job a time limit that runs out one to two minutes from now."""
    text = cluster.command("scontrol", "show", "job", job, "-o")
    hours, minutes, _ = (int(part) for part in re.findall(r"RunTime=(\d+):(\d+):(\d+)", text)[0])
    cluster.command("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")


def test_a_time_limit_that_runs_out_is_no_end_but_a_cancellation_is(
    cluster: Cluster, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM warns a minute or two before the limit; the job starts again where it was.

    No name is given: it comes from the job's number. What is saved is the step it had come to, not one of the
    schedule.
    """
    limited = (*TWO_NODES, "--time=60", "--signal=B:USR1@60")
    endless = ("--training.steps", "100000", "--training.checkpoint_every", "10")
    job = cluster.submit("--recipe", "demo", *options, *endless, sbatch=limited, COSA_GRACE="50")
    folder = cluster.work / "outputs" / "runs" / f"slurm-{job}"
    await_step(cluster, job, folder, 20)
    shorten(cluster, job)
    wait_until(
        lambda: cluster.state(job).restarts == 1 or cluster.state(job).ended,
        DEADLINE,
        lambda: cluster.story(job),
    )
    # The second start would have the short limit too, and on a busy machine be warned before its first step.
    cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_until(
        lambda: "continuing from step-" in cluster.log(job) or cluster.state(job).ended,
        DEADLINE,
        lambda: cluster.story(job),
    )
    before, found, after = cluster.log(job).partition("continuing from step-")
    assert found, cluster.story(job)
    assert "warned by SLURM" in before
    saved = int(after[:8])
    assert saved == int(re.findall(r"step (\d+)/100000", before)[-1])
    await_step(cluster, job, folder, saved + 5)
    assert cluster.state(job).restarts == 1
    assert f"run slurm-{job}, start 2 of job {job}" in cluster.log(job)

    cluster.command("scancel", job)
    assert cluster.await_end(job, DEADLINE).state == "CANCELLED"
    assert "terminated by SLURM" in cluster.log(job)
    print_pause(folder, "time limit, checkpoint, requeue", capsys)
    assert_nothing_is_left(cluster)
    assert not list(cluster.work.glob("outputs/**/*.tmp*"))


@pytest.mark.nightly
def test_a_job_that_lost_a_node_is_started_again_and_goes_on(
    cluster: Cluster, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit("--recipe", "demo", *options, *LONG, "--name", "robbed")
    folder = cluster.work / "outputs" / "runs" / "robbed"
    await_step(cluster, job, folder, 20)
    lose_node(cluster.name, 2)
    wait_until(
        lambda: cluster.state(job).restarts == 1 or cluster.state(job).ended,
        DEADLINE,
        lambda: cluster.story(job),
    )
    return_node(cluster.name, 2, empty_tmp=False)
    assert cluster.await_end(job, DEADLINE) == JobState("COMPLETED", 0, 1), cluster.story(job)
    assert re.search(r"continuing from step-\d+0 on 2 worker", cluster.log(job))
    assert_one_whole_run(folder, STEPS)
    print_pause(folder, "lost node and requeue", capsys)
    assert_nothing_is_left(cluster)


@pytest.mark.nightly
def test_an_elastic_job_outlives_a_lost_node(
    cluster: Cluster, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    elastic = ("--distributed.workers", "[1, 2]", "--distributed.max_failures", "9")
    sbatch = ("--nodes=2", "--cpus-per-task=2", "--no-kill")
    job = cluster.submit("--recipe", "demo", *options, *LONG, *elastic, "--name", "smaller", sbatch=sbatch)
    folder = cluster.work / "outputs" / "runs" / "smaller"
    await_step(cluster, job, folder, 20)
    lose_node(cluster.name, 2)
    try:
        assert cluster.await_end(job, DEADLINE) == JobState("COMPLETED", 0, 0), cluster.story(job)
    finally:
        return_node(cluster.name, 2, empty_tmp=True)
    assert re.search(r"continuing from step-\d+0 on 1 worker", cluster.log(job))
    assert_one_whole_run(folder, STEPS)
    print_pause(folder, "lost node, elastic workers", capsys)


@pytest.mark.nightly
def test_an_array_trains_a_seed_a_task_side_by_side(cluster: Cluster, options: tuple[str, ...]) -> None:
    sbatch = ("--array=0-1", "--nodes=1", "--cpus-per-task=2")
    array = cluster.submit("--recipe", "demo", *options, "--name", "seeds", sbatch=sbatch)
    jobs = [cluster.number(f"{array}_{task}") for task in (0, 1)]
    together = False

    def ended() -> bool:
        nonlocal together
        states = [cluster.state(job) for job in jobs]
        together = together or all(state.state == "RUNNING" for state in states)
        return all(state.ended for state in states)

    wait_until(ended, DEADLINE, lambda: "".join(map(cluster.story, jobs)))
    assert together
    for task, job in enumerate(jobs):
        assert cluster.await_end(job, DEADLINE) == JobState("COMPLETED", 0), cluster.story(job)
        folder = cluster.work / "outputs" / "runs" / f"seeds-s{task}"
        assert_one_whole_run(folder, 3)
        assert tracking_run(folder).data.params["seed"] == str(task)


@pytest.mark.nightly
def test_a_preempted_sweep_goes_on_when_slurm_starts_it_again(
    cluster: Cluster, options: tuple[str, ...]
) -> None:
    """Its two trials run at once, one on each node, and both go on."""
    steps = 600  # one worker is quick
    (cluster.work / "space.yaml").write_text("losses.cam_to_seg: {grid: [0.1, 0.5]}\n")
    words = ("--space", "space.yaml", "--scheduler", "none", "--name", "sweep")
    long = ("--training.steps", str(steps), "--training.checkpoint_every", "10")
    job = cluster.submit(*words, "--recipe", "demo", *options, *long, script="sweep.sh")
    runs = cluster.work / "outputs" / "runs"

    def trials() -> list[Path]:
        return [path for path in runs.glob("sweep-*") if last_step(path) >= 10]

    wait_until(lambda: len(trials()) == 2 or cluster.state(job).ended, DEADLINE, lambda: cluster.story(job))
    urgent = cluster.command(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"
    )
    assert cluster.await_end(urgent, DEADLINE) == JobState("COMPLETED", 0), cluster.story(job)
    assert cluster.await_end(job, DEADLINE) == JobState("COMPLETED", 0, 1), cluster.story(job)
    assert len(trials()) == 2
    assert cluster.log(job).count("continuing from step-") == 2
    for folder in trials():
        assert_one_whole_run(folder, steps)
    assert (cluster.work / "outputs" / "sweeps" / "sweep" / "best.yaml").is_file()
    assert_nothing_is_left(cluster)
