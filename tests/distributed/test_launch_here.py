"""A single worker in the driver's own process: when, its restarts, and what becomes of an interrupted run."""

from __future__ import annotations

import os
import signal
import sys
import weakref

import pytest
import torch

from cosa_dist.config.loading import build_config
from cosa_dist.distributed import launch, worker
from cosa_dist.distributed.prepare import PreparedRun
from cosa_dist.distributed.run_folder import RunFailedError, RunFolder, RunNote
from cosa_dist.tracking.mlflow_runs import connect
from tests.integration.small_run import curve, make_shards

LAPTOP, GPUS = {"CPU": 4.0, "GPU": 0.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("options", "machine", "address", "here"),
    [
        ({}, LAPTOP, "", True),
        ({}, LAPTOP, "local", False),
        ({}, LAPTOP, "10.0.0.1:6379", False),
        ({"distributed": {"workers": 2}}, LAPTOP, "", False),
        ({"distributed": {"workers": [1, 2]}}, LAPTOP, "", False),
        ({"distributed": {"cpus_per_worker": 5}}, LAPTOP, "", False),
        ({}, {**GPUS, "GPU": 1.0}, "", True),
        ({}, GPUS, "", False),
        ({"distributed": {"workers": 1}}, GPUS, "", True),
        ({"kind": "segmenter", "stage_one": {"recipe": "tiny"}}, LAPTOP, "", False),
    ],
)
def test_only_a_single_worker_that_the_machine_holds_needs_no_cluster(
    options, machine, address, here, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(launch, "has_ray", lambda: False)
    config = build_config({"training": {"global_batch_size": 4}, **options})
    assert launch.runs_here(config, machine) is here


@pytest.fixture
def run(tmp_path, monkeypatch) -> PreparedRun:
    """A prepared run without a tracking run."""
    monkeypatch.setattr(launch, "has_ray", lambda: False)
    folder = RunFolder(tmp_path / "run")
    prepared = PreparedRun(build_config({"distributed": {"max_failures": 2}}), folder, RunNote("", ""))
    folder.create(prepared.config, prepared.note)
    return prepared


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (2, 3), (3, 3)])
def test_a_worker_that_fails_is_started_again_as_often_as_asked(run, failures, calls, monkeypatch):
    starts: list[int] = []

    def train(task, report):
        starts.append(len(starts))
        if len(starts) <= failures:
            raise RuntimeError("the disk\nis away")

    monkeypatch.setattr(worker, "run_worker", train)
    if failures < 3:
        launch.launch(run, LAPTOP)
        assert run.folder.read_note().finished
    else:
        with pytest.raises(RunFailedError, match="^RuntimeError: the disk is away$"):
            launch.launch(run, LAPTOP)
        assert not run.folder.read_note().finished
    assert len(starts) == calls


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no such class"), RuntimeError("no disk")])
def test_a_run_that_ends_early_leaves_no_half_written_checkpoint(run, error, monkeypatch):
    """Workers on a cluster are killed in the middle of one; what is whole stays."""

    def train(task, report):
        for name in ("step-00000001", ".step-00000002.ab.tmp"):
            (run.folder.checkpoints / name).mkdir(parents=True, exist_ok=True)
            (run.folder.checkpoints / name / "online.safetensors").touch()
        raise error

    monkeypatch.setattr(worker, "run_worker", train)
    with pytest.raises((KeyboardInterrupt, RunFailedError)):
        launch.launch(run, LAPTOP)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["step-00000001"]


def test_an_error_that_would_come_again_is_met_once(run, monkeypatch):
    starts: list[int] = []

    def train(task, report):
        starts.append(0)
        raise ValueError("no such class")

    monkeypatch.setattr(worker, "run_worker", train)
    with pytest.raises(RunFailedError, match="^ValueError: no such class$"):
        launch.launch(run, LAPTOP)
    assert len(starts) == 1


class Network:
    """Held by itself, as networks are by their hooks."""

    def __init__(self) -> None:
        self.own = self


def test_what_a_failed_worker_held_is_freed_before_the_next_starts(run, monkeypatch):
    networks: list[weakref.ref[Network]] = []
    freed: list[bool] = []

    def train(task, report):
        network = Network()
        networks.append(weakref.ref(network))
        if len(networks) == 1:
            raise RuntimeError("the disk is away")

    monkeypatch.setattr(worker, "run_worker", train)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(networks[0]() is None))
    launch.launch(run, LAPTOP)
    assert (len(networks), freed) == (2, [True])


@pytest.mark.parametrize("met", ["at once", "behind another error", "afterwards"])
def test_a_process_whose_gpu_has_failed_does_not_try_again(run, met, monkeypatch):
    starts: list[int] = []

    def fail(*words: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    def train(task, report):
        starts.append(0)
        if met == "at once":
            fail()
        try:
            if met == "behind another error":
                fail()
        finally:
            raise RuntimeError("the loader is gone")

    monkeypatch.setattr(worker, "run_worker", train)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail if met == "afterwards" else lambda: None)
    cause = "AcceleratorError: CUDA error: unspecified launch failure"
    cause = cause if met == "at once" else "RuntimeError: the loader is gone"
    with pytest.raises(
        RunFailedError, match=f"^{cause}; this process .* GPU .*: continue with --resume run$"
    ):
        launch.launch(run, LAPTOP)
    assert len(starts) == 1


def test_an_interrupted_run_is_killed_and_resumed_without_ray(run_job, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launch, "has_ray", lambda: False)
    monkeypatch.setitem(sys.modules, "cosa_dist.distributed.scaling", None)  # its import would fail
    place = ["--data.shards", str(make_shards(tmp_path / "shards")), "--output", str(tmp_path / "out")]
    words = ["--recipe", "tiny", *place, "--distributed.workers", "1", "--distributed.device", "cpu"]
    real = worker.run_worker

    def interrupted(task, report):
        def strike(state, batches):
            if state.step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

        return real(task, report, strike)

    monkeypatch.setattr(worker, "run_worker", interrupted)
    stopped = run_job("jobs/train.py", *words, "--name", "cut")
    assert stopped.code == 130, stopped.err
    folder = RunFolder(tmp_path / "out" / "runs" / "cut")

    def status() -> str:
        note = folder.read_note()
        return connect(note.tracking_uri).get_run(note.run_id).info.status

    assert status() == "KILLED"
    assert not folder.read_note().finished
    monkeypatch.setattr(worker, "run_worker", real)
    resumed = run_job("jobs/train.py", "--resume", "cut", "--output", str(tmp_path / "out"))
    assert resumed.code == 0, resumed.err
    assert status() == "FINISHED"
    whole = run_job("jobs/train.py", *words, "--name", "whole")
    assert whole.code == 0, whole.err
    assert curve(folder.path, "train/total") == curve(tmp_path / "out" / "runs" / "whole", "train/total")
