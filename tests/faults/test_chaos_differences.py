"""What the comparison with the undisturbed run calls a difference, on runs made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.tracking.mlflow_runs import connect, create_run, finish_run
from cosa_dist.tracking.store import prepare_store
from tests.faults.chaos import differences


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return prepare_store(None, tmp_path_factory.mktemp("store"))


def ended_run(
    folder: Path, store: str, steps=(1, 2, 3), loss=0.5, seconds=1.0, weight=1.0, momentum=2.0, **end
):
    """A run folder with one checkpoint, and its tracking run."""
    run_id = create_run(store, "chaos", folder.name)
    for step in steps:
        connect(store).log_metric(run_id, "train/total", loss * step, step=step)
    connect(store).log_metric(run_id, "final/training_seconds", seconds, step=3)
    finish_run(store, run_id, end.get("status", "FINISHED"))
    last = folder / "checkpoints" / end.get("name", "step-00000003")
    last.mkdir(parents=True)
    save_file({"weight": torch.tensor([weight])}, last / "online.safetensors")
    torch.save({"state": [{"momentum": torch.tensor(momentum)}]}, last / "optimizer.pt")
    RunFolder(folder).write_note(RunNote(store, run_id, finished=True))
    return folder


@pytest.fixture(scope="module")
def twin(tmp_path_factory, store) -> Path:
    return ended_run(tmp_path_factory.mktemp("twins") / "twin", store)


def test_only_measured_times_may_differ(tmp_path, store, twin):
    assert differences(twin, ended_run(tmp_path / "same", store, seconds=9.0)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"weight": 1.0 + 2**-23}, "online.safetensors of the last checkpoint differs"),
        ({"momentum": 2.5}, "optimizer.pt of the last checkpoint differs"),
        ({"name": "step-00000002"}, "last checkpoint step-00000002 instead of step-00000003"),
        ({"loss": 0.5 + 1e-12}, "train/total has other values"),
        ({"steps": (1, 3)}, "train/total is recorded at other steps: [1, 3]"),
        ({"status": "KILLED"}, "the tracking run is KILLED"),
    ],
)
def test_a_difference_is_one_line(tmp_path, store, twin, change, line):
    assert differences(twin, ended_run(tmp_path / "other", store, **change)) == [line]


def test_a_point_that_was_recorded_twice_is_told(tmp_path, store, twin):
    found = differences(twin, ended_run(tmp_path / "twice", store, steps=(1, 2, 2, 3)))
    assert found[0] == "train/total is recorded more than once at steps [2]"
