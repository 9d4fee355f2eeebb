"""Everything that is written has the access rights that the umask leaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cosa_dist.atomic import atomic_write
from cosa_dist.distributed.labelling.worker import LabellingTask, ShardLabeller
from cosa_dist.distributed.worker import run_worker
from cosa_dist.inference.export import export
from cosa_dist.inference.trained import choose, load_trained
from cosa_dist.inference.writing import write_file
from cosa_dist.model.weights import read_network, write_ours, write_released
from cosa_dist.training.checkpoint import save_checkpoint
from tests.integration.small_run import make_shards, small_config, task_of
from tests.training.test_checkpoint import learning_state

SETTINGS = {
    "training": {"steps": 2},
    "assignment": {"threshold": {"kind": "two_components", "queue": 3}},
}


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_all_writers_follow_the_umask(tmp_path, umask):
    shards, folder = make_shards(tmp_path / "shards"), tmp_path / "run"
    config = small_config(shards, tmp_path, "run", **SETTINGS)
    run_worker(task_of(config, folder, 4))
    model = load_trained(folder, "", "online", torch.device("cpu"))
    export(model, tmp_path / "export", ["weights"])
    network = read_network(choose(folder).weights)
    write_ours(network, tmp_path / "ours.safetensors")
    write_released(network, tmp_path / "theirs.pth")
    (tmp_path / "labelled").mkdir()
    task = LabellingTask(str(folder), "2", "online", {}, str(tmp_path / "labelled"), "key", False, 1)
    ShardLabeller(task).label(0)
    write_file(tmp_path / "predicted", "masks/one.png", lambda file: np.save(file, np.zeros(3)))
    atomic_write(tmp_path / "page.html", "text")

    found = modes(tmp_path)
    written = {Path(name).name for name in found}
    assert written >= {
        *("online.safetensors", "assignment.safetensors", "thresholds.safetensors", "optimizer.pt"),
        *("state.json", "best.json", "model.safetensors", "ours.safetensors", "theirs.pth", "one.png"),
        *("metrics.jsonl", "report_online.json", "results.txt", "dataset.json", "00000.arrow", "page.html"),
    }
    assert any(name.endswith(".arrow") and name.startswith("shards/") for name in found)
    assert any(name.startswith("run/pictures/") for name in found)
    wrong = {name: oct(mode) for name, mode in found.items() if mode != 0o666 & ~umask}
    assert wrong == {}


def test_a_file_that_is_there_keeps_its_rights(tmp_path):
    state = learning_state()
    path = save_checkpoint(state, tmp_path, keep=1)
    assert {oct(mode) for mode in modes(path).values()} == {oct(0o666 & ~_umask())}
    from cosa_dist.model.weight_file import save_tensors

    target = tmp_path / "own.safetensors"
    target.touch()
    target.chmod(0o640)
    save_tensors({"a": torch.zeros(2)}, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
