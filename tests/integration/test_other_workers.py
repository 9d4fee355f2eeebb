"""A run that goes on with another number of workers: same samples, losses up to rounding, one error."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cosa_dist.distributed.run_folder import WorkerTask
from cosa_dist.distributed.worker import run_worker
from cosa_dist.evaluation import evaluator
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.training.checkpoint_files import checkpoints, read_checkpoint
from cosa_dist.training.window import LossWindow, NonFiniteLossError
from tests.integration.small_run import ALL_PARTS, curve, make_shards, small_config, task_of, watch
from tests.support.ranks import run_ranks
from tests.training.test_window import Named

RANKS = 2


def _train(index: int, payload: dict, notes: str) -> None:
    samples: dict[int, list[str]] = {}
    run_worker(WorkerTask(**payload), on_step=watch(samples))
    torch.save(samples, Path(notes) / f"{index}.pt")


def _finish(index: int, payload: dict, notes: str) -> None:
    """Train with a second worker that can do neither the dense CRF nor the CAM control."""
    logging.basicConfig(filename=Path(notes) / f"{index}.log", level=logging.WARNING, format="%(message)s")
    if index == 1:
        evaluator.predict_with_crf = evaluator.strongest_activation = broken
    reports = run_worker(WorkerTask(**payload))
    (Path(notes) / f"{index}.json").write_text(reports["online"].to_json())


def broken(*words: object) -> None:
    raise RuntimeError("out of something")


def _break(index: int, notes: str) -> None:
    window = LossWindow()
    for step in range(3):
        value = float("nan") if (index, step) == (1, 1) else 1.0
        window.add({"total": torch.tensor(value)}, [Named([f"step{step}rank{index}"])])
    try:
        window.means(7)
    except NonFiniteLossError as error:
        (Path(notes) / f"{index}.txt").write_text(str(error))


def test_a_run_of_one_worker_goes_on_with_two(tmp_path):
    shards = make_shards(tmp_path / "shards")
    straight, other = tmp_path / "straight", tmp_path / "other"
    samples: dict[int, list[str]] = {}
    config = small_config(shards, tmp_path, "straight", **ALL_PARTS)
    run_worker(task_of(config, straight, 4), on_step=watch(samples))
    first = checkpoints(straight / "checkpoints")[0]
    step = read_checkpoint(first)["step"]
    shutil.copytree(first, other / "checkpoints" / first.name)
    task = asdict(task_of(small_config(shards, tmp_path, "other", **ALL_PARTS), other, 0))
    run_ranks(_train, RANKS, task, str(tmp_path))

    parts = [torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(RANKS)]
    assert {number: parts[0][number] + parts[1][number] for number in parts[0]} == {
        number: names for number, names in samples.items() if number >= step
    }
    newest = read_checkpoint(checkpoints(other / "checkpoints")[-1])
    assert (newest["step"], newest["workers"]) == (ALL_PARTS["training"]["steps"], RANKS)
    for name in ("total", "classification", "cam_to_seg", "seg_to_cam", "threshold"):
        found = curve(other, f"train/{name}")
        expected = torch.tensor(curve(straight, f"train/{name}")[-len(found) :])
        assert len(found) > 2
        torch.testing.assert_close(torch.tensor(found), expected, rtol=5e-3, atol=5e-4, msg=name)


def test_what_one_worker_cannot_do_after_the_last_step_is_spared_by_all_and_told_by_the_first(tmp_path):
    evaluation = {"limit": 4, "cam_control": True, "crf": {"enabled": True}, "pictures": 0}
    sections = {"training": {"steps": 2}, "evaluation": evaluation}
    config = small_config(make_shards(tmp_path / "shards"), tmp_path, "run", **sections)
    task = asdict(task_of(config, tmp_path / "run", 0))
    run_ranks(_finish, RANKS, task, str(tmp_path))
    assert (tmp_path / "0.log").read_text().splitlines() == [
        "no scores after the dense CRF (evaluation.crf): worker 1: RuntimeError: out of something",
        "no CAM control (evaluation.cam_control): worker 1: RuntimeError: out of something",
    ]
    assert (tmp_path / "1.log").read_text() == ""
    texts = [(tmp_path / name).read_text() for name in ("0.json", "1.json", "run/report_online.json")]
    assert texts[0] == texts[1] == texts[2]
    report = EvalReport.from_json(texts[0])
    assert (report.images, sorted(key for key in report.scores if key.endswith("_crf"))) == (11, [])
    assert curve(tmp_path / "run", "val/online/images") == [4]


def test_the_ranks_agree_on_a_broken_step_and_name_the_samples_of_its_rank(tmp_path):
    run_ranks(_break, RANKS, str(tmp_path))
    texts = [(tmp_path / f"{index}.txt").read_text() for index in range(RANKS)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("step 6: total not finite; samples of rank 1: step1rank1;")


def test_a_checkpoint_that_cannot_be_used_stops_before_training(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    config = small_config(make_shards(tmp_path / "shards"), tmp_path, "run", **ALL_PARTS)
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        run_worker(task_of(config, folder, 4), on_step=lambda *step: pytest.fail("trained"))
