"""`sbatch slurm/cosa.sh` on a real SLURM with two nodes: it trains, shares them with another, and fails."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient

from cosa_dist.training.checkpoint_files import find_checkpoint, read_checkpoint
from tests.slurm.client import Cluster, JobState, wait_until
from tests.slurm.processes import environment_of

pytestmark = [pytest.mark.slow, pytest.mark.integration]
DEADLINE = 900.0  # generous: the machine may be busy


def assert_nothing_is_left(cluster: Cluster) -> None:
    """No process but the node's own, no file in its /tmp and /dev/shm."""
    own = re.compile(r"bash \S+/node\.sh|sleep infinity|slurmd -D|slurmstepd: \[")

    def left() -> list[str]:
        running = [command for node in cluster.processes().values() for command in node.values()]
        return [command for command in running if not own.match(command)] + cluster.private_files()

    wait_until(lambda: not left(), 60, lambda: f"left behind: {left()}")


def await_cluster_of(cluster: Cluster, job: str) -> None:
    """Wait until a job's Ray cluster is complete, or the job has ended."""

    def complete() -> bool:
        return "all 2 node(s) joined" in cluster.log(job) or cluster.state(job).ended

    wait_until(complete, DEADLINE, lambda: cluster.story(job))


def errors(log: str) -> list[str]:
    """The lines that begin with `error:`."""
    return [line for line in log.splitlines() if line.startswith("error:")]


@dataclass(frozen=True)
class Pair:
    """A training, and a job beside it whose program fails when the cluster is up; after their end."""

    training: str
    failing: str
    states: dict[str, JobState]
    """job -> how it ended"""
    workers: dict[str, int]
    """node -> workers of Ray Train that were seen on it"""
    shared_nodes: bool
    """both jobs were seen running on the same two nodes"""
    tokens: set[str]
    """what Ray's head processes were given to tell friends from strangers"""
    shown: bool
    """a token was seen in a command line, which everybody on a node can read"""


@pytest.fixture(scope="module")
def pair(cluster: Cluster, options: tuple[str, ...]) -> Pair:
    training = cluster.submit("--recipe", "demo", *options, "--name", "trained")
    # Two cluster starts at once are slow on few cores.
    await_cluster_of(cluster, training)
    missing = str(cluster.work / "no_such_shards")
    failing = cluster.submit("--recipe", "demo", *options, "--data.shards", missing)
    workers: dict[str, set[int]] = defaultdict(set)
    shared = shown = False
    tokens: set[str] = set()

    def ended() -> bool:
        nonlocal shared, shown
        for node, commands in cluster.processes().items():
            heads = [environment_of(pid) for pid, words in commands.items() if "/gcs_server " in words]
            tokens.update(head["RAY_AUTH_TOKEN"] for head in heads if head.get("RAY_AUTH_MODE") == "token")
            shown = shown or any(token in words for token in tokens for words in commands.values())
            workers[node] |= {
                pid for pid, words in commands.items() if words.startswith("ray::RayTrainWorker")
            }
        running = cluster.command("squeue", "-h", "-t", "RUNNING", "-o", "%N").splitlines()
        shared = shared or (len(running) == 2 and len(set(running)) == 1)
        return cluster.state(training).ended and cluster.state(failing).ended

    wait_until(ended, DEADLINE, lambda: cluster.story(training) + cluster.story(failing))
    states = {job: cluster.await_end(job, DEADLINE) for job in (training, failing)}
    counts = {node: len(pids) for node, pids in workers.items()}
    return Pair(training, failing, states, counts, shared, tokens, shown)


def test_a_job_on_two_nodes_trains_with_a_worker_on_each(cluster: Cluster, pair: Pair) -> None:
    log = cluster.log(pair.training)
    assert pair.states[pair.training] == JobState("COMPLETED", 0), cluster.story(pair.training)
    assert "all 2 node(s) joined" in log
    assert log.endswith(" jobs/train.py ended with 0\n")
    assert list(pair.workers.values()) == [1, 1]

    folder = cluster.work / "outputs" / "runs" / "trained"
    note = json.loads((folder / "run.json").read_text())
    assert note["finished"]
    newest = find_checkpoint(folder, "newest")
    assert newest.name == "step-00000003"
    assert read_checkpoint(newest)
    run = MlflowClient(note["tracking_uri"]).get_run(note["run_id"])
    assert run.info.status == "FINISHED"
    assert "final/online/miou_unfiltered" in run.data.metrics


def test_a_job_ends_with_the_failing_programs_code_and_line(cluster: Cluster, pair: Pair) -> None:
    assert pair.states[pair.failing] == JobState("FAILED", 2), cluster.story(pair.failing)
    log = cluster.log(pair.failing)
    assert "all 2 node(s) joined" in log
    assert len(errors(log)) == 1
    assert str(cluster.work / "no_such_shards") in errors(log)[0]
    assert log.endswith(" jobs/train.py ended with 2\n")


def test_two_jobs_on_the_same_nodes_have_a_cluster_each_and_leave_nothing(
    cluster: Cluster, pair: Pair
) -> None:
    assert pair.shared_nodes
    heads = [re.findall(r"head at (\S+),", cluster.log(job)) for job in (pair.training, pair.failing)]
    assert len(heads[0]) == len(heads[1]) == 1
    assert heads[0] != heads[1]
    assert_nothing_is_left(cluster)


def test_each_jobs_cluster_has_a_token_of_its_own_that_no_command_line_shows(pair: Pair) -> None:
    assert len(pair.tokens) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in pair.tokens)
    assert not pair.shown


def test_a_wrong_recipe_ends_the_job_before_a_cluster_starts(
    cluster: Cluster, options: tuple[str, ...]
) -> None:
    job = cluster.submit("--recipe", "no_such_recipe", *options)
    assert cluster.await_end(job, DEADLINE) == JobState("FAILED", 2), cluster.story(job)
    assert len(errors(cluster.log(job))) == 1
    assert "no recipe named 'no_such_recipe'" in errors(cluster.log(job))[0]
    assert "starting Ray" not in cluster.log(job)
    assert_nothing_is_left(cluster)
