"""Whole runs of one worker on the device: loader processes, evaluation, checkpoint, resume; both stages."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.data.reading import loader
from cosa_dist.distributed.worker import run_worker
from tests.integration.small_run import ALL_PARTS, curve, make_shards, small_config, task_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


def task_on(device, config, folder, micro):
    return replace(task_of(config, folder, micro), use_gpu=device.type == "cuda", cpus=2)


@pytest.mark.parametrize(
    ("precision", "start"), [("fp32", "forkserver"), ("bf16", "forkserver"), ("fp32", "fork")]
)
def test_a_run_is_evaluated_saved_and_resumed(device, shards, tmp_path, monkeypatch, precision, start):
    if (device.type == "cuda") != (start == "forkserver"):  # otherwise it is what the loader chooses
        monkeypatch.setattr(loader, "_start_method", lambda: multiprocessing.get_context(start))
    sections = merge(ALL_PARTS, {
        "data": {"loader_workers": 2},
        "training": {"steps": 8, "checkpoint_every": 4, "precision": precision},
        "evaluation": {"every": 4, "pictures": 2, "crf": {"enabled": True}},
    })  # fmt: skip
    folder, resumed = tmp_path / "whole", tmp_path / "resumed"
    config = small_config(shards, tmp_path, "whole", **sections)
    reports = run_worker(task_on(device, config, folder, 4))
    assert reports["online"].images == 11
    assert set(reports["online"].scores) >= {"unfiltered", "unfiltered_crf", "cam_true_labels"}
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    shutil.copytree(folder / "checkpoints" / "step-00000004", resumed / "checkpoints" / "step-00000004")
    run_worker(task_on(device, small_config(shards, tmp_path, "resumed", **sections), resumed, 4))
    expected = torch.tensor(curve(folder, "train/total")[2:])
    found = torch.tensor(curve(resumed, "train/total"))
    torch.testing.assert_close(found, expected, rtol=0.05 if precision == "bf16" else 5e-3, atol=1e-3)


@pytest.mark.parametrize("micro", [4, 2])
def test_a_segmenter_is_trained(device, shards, tmp_path, micro):
    place = {"output": str(tmp_path), "name": "ms", "data": {"shards": str(shards)}, "supervision": "truth"}
    own = {"data": {"loader_workers": 2}, "training": {"steps": 8, "log_every": 1, "micro_batch_size": micro}}
    config = build_config(
        merge(merge(merge(read_recipe("tiny_ms"), place), own), {"training": {"precision": "fp32"}})
    )
    reports = run_worker(task_on(device, config, tmp_path / "ms", micro))
    assert set(reports) == {"online", "average"}
    assert reports["average"].images == 11
    losses = curve(tmp_path / "ms", "train/masks")
    assert losses[-1] < losses[0]
    saved = load_file(tmp_path / "ms" / "checkpoints" / "step-00000008" / "online.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values() if tensor.is_floating_point())
