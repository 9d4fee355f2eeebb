"""A worker in this process: exact resume, accumulation, control runs, failures that say why."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cosa_dist.data.decode import decode_mask, encode_mask
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.distributed.worker import run_worker
from cosa_dist.evaluation.intervals import ImageCounts, miou_of
from cosa_dist.reports.comparison import compare
from cosa_dist.reports.leaderboard import RunRecord, rows_of, without_result
from cosa_dist.training.checkpoint_files import best_checkpoint
from cosa_dist.training.window import NonFiniteLossError
from tests.integration.small_run import curve, make_shards, small_config, task_of

LOSSES = ("total", "classification", "cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """An uninterrupted run: its folder and reports."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    reports = run_worker(task_of(small_config(shards, folder.parent, "straight"), folder, 4))
    return folder, reports


def weights(folder, step=10):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "online.safetensors")


def test_a_run_leaves_reports_pictures_metrics_and_checkpoints(straight):
    folder, reports = straight
    assert reports["online"].images == 11
    assert len(list((folder / "pictures").glob("*.png"))) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"best.json"}
    assert len(curve(folder, "train/total")) == 10
    assert all(value > 0 for value in curve(folder, "train/gradient_norm"))
    assert len(curve(folder, "train/model_tflops")) == 10
    assert all(0 <= value < 1 for value in curve(folder, "train/loader_wait_share"))
    assert len(curve(folder, "final/online/miou_unfiltered")) == 1
    assert "predicted_labels" in (folder / "results.txt").read_text()
    for name, report in reports.items():
        counts = ImageCounts.load(folder / f"report_{name}.npz")
        assert len(counts.ids) == 11
        assert 100 * miou_of(counts.table("unfiltered").sum(0)) == pytest.approx(report.miou(), abs=1e-9)
        # Eleven images are too few for an interval, which is said of the last evaluation.
        ends = [curve(folder, f"final/{name}/miou_unfiltered_{end}") for end in ("low", "high")]
        assert ends == [[], []]
        assert report.rare_classes == tuple(("background", *report.class_names)[k] for k in counts.rare) != ()
    assert "no 95 % interval: fewer than 5 images have " in (folder / "results.txt").read_text()
    assert not curve(folder, "val/online/miou_unfiltered_low")
    assert compare([folder], [folder]).difference.value == 0


def test_all_terms_are_at_work_from_the_first_step(straight):
    folder, _ = straight
    for name in LOSSES:
        values = curve(folder, f"train/{name}")
        assert all(value != 0 for value in values), name


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(shards, straight, tmp_path):
    folder, _ = straight
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "checkpoints" / "step-00000005", resumed / "checkpoints" / "step-00000005")
    run_worker(task_of(small_config(shards, tmp_path, "resumed"), resumed, 4))
    assert curve(resumed, "train/total") == curve(folder, "train/total")[5:]
    expected = weights(folder)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_accumulation_does_not_change_the_losses(shards, straight, tmp_path):
    folder, _ = straight
    cut = tmp_path / "cut"
    config = small_config(shards, tmp_path, "cut", training={"micro_batch_size": 1})
    run_worker(task_of(config, cut, 1))
    for name in LOSSES:
        torch.testing.assert_close(
            torch.tensor(curve(cut, f"train/{name}")),
            torch.tensor(curve(folder, f"train/{name}")),
            rtol=2e-3,
            atol=2e-4,
        )


def test_a_control_run_trains_the_classifiers_only_and_measures_their_cam(shards, tmp_path):
    folder = tmp_path / "control"
    config = small_config(shards, tmp_path, "control", kind="control", evaluation={"cam_control": True})
    run_worker(task_of(config, folder, 4))
    assert set(curve(folder, "train/cam_to_seg")) == {0.0}
    (miou,) = curve(folder, "final/online/cam_control_predicted_labels")
    assert 0 < miou < 100


def test_the_warm_up_gates_the_other_losses(shards, tmp_path):
    folder = tmp_path / "gated"
    run_worker(task_of(small_config(shards, tmp_path, "gated", losses={"warmup_steps": 4}), folder, 4))
    values = curve(folder, "train/cam_to_seg")
    assert values[:4] == [0.0] * 4
    assert all(value > 0 for value in values[4:])


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_samples(shards, tmp_path):
    folder = tmp_path / "wild"
    config = small_config(shards, tmp_path, "wild", optimizer={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(NonFiniteLossError, match=r"step \d+: .*samples of rank 0: train"):
        run_worker(task_of(config, folder, 4))


# A crop of 64 pixels gives the threshold search 16 activations of each image.
WHOLE_METHOD = {
    "data": {"crop_size": 64},
    "assignment": {
        "momentum": 0.9,
        "reliability": True,
        "threshold": {"kind": "two_components", "queue": 4, "momentum": 0.5},
    },
    "losses": {"warmup_steps": 0, "separation": 0.1, "separation_contrast": {"max_perplexity": 2.0}},
}


@pytest.fixture(scope="module")
def straight_whole(shards, tmp_path_factory):
    """An uninterrupted run with threshold search, reliability weights and separation."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_worker(task_of(small_config(shards, folder.parent, "whole", **WHOLE_METHOD), folder, 4))
    return folder


def test_the_papers_parts_are_at_work(straight, straight_whole):
    assert all(value > 0 for value in curve(straight_whole, "train/separation"))
    assert set(curve(straight[0], "train/separation")) == {0.0}
    for name in ("threshold", "aux_threshold"):
        values = curve(straight_whole, f"train/{name}")
        assert len(set(values)) > 3, name
        assert all(0.05 < value < 1 for value in values), name


def test_a_run_with_searched_thresholds_resumes_bit_for_bit(shards, straight_whole, tmp_path):
    resumed = tmp_path / "resumed"
    source = straight_whole / "checkpoints" / "step-00000005"
    shutil.copytree(source, resumed / "checkpoints" / source.name)
    run_worker(task_of(small_config(shards, tmp_path, "resumed", **WHOLE_METHOD), resumed, 4))
    for name in ("total", "separation", "threshold", "aux_threshold"):
        assert curve(resumed, f"train/{name}") == curve(straight_whole, f"train/{name}")[5:], name
    expected = weights(straight_whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_accumulation_does_not_change_the_losses_of_the_whole_method(shards, straight_whole, tmp_path):
    cut = tmp_path / "cut"
    config = small_config(shards, tmp_path, "cut", training={"micro_batch_size": 1}, **WHOLE_METHOD)
    run_worker(task_of(config, cut, 1))
    for name in (*LOSSES, "separation", "threshold", "aux_threshold"):
        torch.testing.assert_close(
            torch.tensor(curve(cut, f"train/{name}")),
            torch.tensor(curve(straight_whole, f"train/{name}")),
            rtol=5e-3,
            atol=5e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_whole_method_trains_in_bf16(shards, straight_whole, tmp_path):
    folder = tmp_path / "bf16"
    training = {"precision": "bf16", "steps": 3}
    run_worker(task_of(small_config(shards, tmp_path, "bf16", training=training, **WHOLE_METHOD), folder, 4))
    found = torch.tensor(curve(folder, "train/total"))
    expected = torch.tensor(curve(straight_whole, "train/total")[:3])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_bf16_trains_with_finite_losses_close_to_fp32(shards, straight, tmp_path):
    folder = tmp_path / "bf16"
    config = small_config(shards, tmp_path, "bf16", training={"precision": "bf16", "steps": 3})
    run_worker(task_of(config, folder, 4))
    expected = torch.tensor(curve(straight[0], "train/total")[:3])
    found = torch.tensor(curve(folder, "train/total"))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def in_white(record):
    """The record with 255 for all classes in its mask, as masks for people have it."""
    ids = decode_mask(record.mask.read())
    white = encode_mask(np.where(ids > 0, 255, 0).astype(np.uint8))
    return replace(record, mask=white, tags=tuple((np.unique(ids[ids > 0]) - 1).tolist()), context=None)


def test_validation_masks_without_a_class_give_no_score_no_best_checkpoint_and_no_rank(tmp_path, caplog):
    shards, shown = tmp_path / "white", StringIO()
    sources = {
        "train": [replace(r, context=None) for r in synthetic_records("train", 8, seed=3, image_size=48)],
        "val": [in_white(record) for record in synthetic_records("val", 3, seed=3, image_size=48)],
    }
    ingest(sources, synthetic_info(), shards, console=Console(file=shown))
    assert "WARNING: split 'val': the masks hold 0 and 255 only" in shown.getvalue()
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        reports = run_worker(task_of(small_config(shards, tmp_path, "run", training={"steps": 2}), folder, 4))
    assert "there are no scores: on the validation images no class occurs in the masks" in caplog.text
    assert {report.miou() for report in reports.values()} == {None}
    assert reports["online"].images == 3
    assert curve(folder, "final/miou_unfiltered") == curve(folder, "final/online/miou_unfiltered") == []
    assert best_checkpoint(folder / "checkpoints") is None
    assert (folder / "checkpoints" / "step-00000002").is_dir()
    metrics = {f"final/{key}": value for one in reports.values() for key, value in one.metrics().items()}
    run = RunRecord("1", "run", "cosa", "FINISHED", metrics, {"dataset": "synthetic"})
    assert rows_of(run) == []
    assert without_result([run]) == [run]


def test_a_run_on_pictures_without_masks_ends_without_scores(tmp_path):
    bare = tmp_path / "bare"
    counts = {"train": 8, "val": 3}
    sources = {
        name: [
            replace(record, mask=None, context=None)
            for record in synthetic_records(name, n, seed=3, image_size=48)
        ]
        for name, n in counts.items()
    }
    ingest(sources, synthetic_info(), bare, console=Console(quiet=True))
    folder = tmp_path / "run"
    reports = run_worker(task_of(small_config(bare, tmp_path, "run", training={"steps": 2}), folder, 4))
    assert reports["online"].miou("unfiltered") is None
    assert reports["online"].images == 0
    assert reports["online"].images_without_mask == 3
    assert curve(folder, "final/miou_unfiltered") == []
    assert (folder / "checkpoints" / "step-00000002").is_dir()
    assert len(list((folder / "pictures").glob("*.png"))) == 1
