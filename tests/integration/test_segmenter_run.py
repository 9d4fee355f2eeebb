"""A segmenter's run in this process: exact resume, accumulation, both ways of reading, clear refusals."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.distributed.prepare import prepare_run
from cosa_dist.distributed.worker import run_worker
from cosa_dist.training.checkpoint import load_networks
from tests.integration.small_run import curve, make_shards, small_config, task_of


def segmenter_config(shards, output, name, **sections):
    place = {"output": str(output), "name": name, "data": {"shards": str(shards)}, "supervision": "truth"}
    return build_config(merge(merge(read_recipe("tiny_ms"), place), sections))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    reports = run_worker(task_of(segmenter_config(shards, folder.parent, "straight"), folder, 4))
    return folder, reports


def tensors(folder, network, step=10):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{network}.safetensors")


def test_a_run_reports_its_two_networks_without_cams(straight):
    folder, reports = straight
    assert set(reports) == {"online", "average"}
    assert set(reports["online"].scores) == {"unfiltered", "predicted_labels", "true_labels"}
    assert reports["online"].images == 11
    losses = curve(folder, "train/masks")
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert len(list((folder / "pictures").glob("*.png"))) == 1
    _, networks = load_networks(folder, "newest", torch.device("cpu"))
    assert set(networks) == {"online", "average"}


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(shards, straight, tmp_path):
    folder, _ = straight
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "checkpoints" / "step-00000005", resumed / "checkpoints" / "step-00000005")
    run_worker(task_of(segmenter_config(shards, tmp_path, "resumed"), resumed, 4))
    assert curve(resumed, "train/masks") == curve(folder, "train/masks")[5:]
    for network in ("online", "assignment"):
        for name, value in tensors(folder, network).items():
            assert torch.equal(value, tensors(resumed, network)[name]), name


def test_accumulation_does_not_change_the_losses(shards, straight, tmp_path):
    folder, _ = straight
    cut = tmp_path / "cut"
    config = segmenter_config(shards, tmp_path, "cut", training={"micro_batch_size": 1})
    run_worker(task_of(config, cut, 1))
    torch.testing.assert_close(
        torch.tensor(curve(cut, "train/masks")),
        torch.tensor(curve(folder, "train/masks")),
        rtol=2e-3,
        atol=2e-4,
    )


def test_it_streams(shards, tmp_path):
    folder = tmp_path / "streamed"
    config = segmenter_config(shards, tmp_path, "streamed", data={"reading": "streaming"})
    run_worker(task_of(config, folder, 4))
    assert len(curve(folder, "train/masks")) == 10


def test_wrong_supervision_is_refused_before_anything_starts(shards, tmp_path):
    wanted = segmenter_config(
        shards, tmp_path, "wanted", supervision="pseudo_masks", stage_one={"recipe": ""}
    )
    with pytest.raises(ConfigError, match=r"holds no pseudo-masks; make them with jobs/pseudo_masks.py"):
        prepare_run(wanted)
    assert not (tmp_path / "runs").exists()


def test_a_cosa_run_never_reads_masks(shards, tmp_path, monkeypatch):
    import cosa_dist.data.reading.samples as samples

    def forbidden(data):
        raise AssertionError("a mask was decoded")

    from cosa_dist.data.shards.split import open_split
    from cosa_dist.distributed.worker import training_loader

    def steps(config):
        task = task_of(config, tmp_path / config.name, 4)
        return list(training_loader(config, open_split(shards, "train"), 0, task))

    two = {"training": {"steps": 2}}
    monkeypatch.setattr(samples, "decode_mask", forbidden)
    tags = steps(small_config(shards, tmp_path, "tags", **two))
    assert [batch.masks for step in tags for batch in step] == [None, None]
    with pytest.raises(AssertionError, match="a mask was decoded"):
        steps(segmenter_config(shards, tmp_path, "masks", **two))
