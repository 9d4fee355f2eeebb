"""A run that is interrupted twice, at any step, equals the uninterrupted one bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.errors import RecordError
from cosa_dist.distributed.run_folder import WorkerTask
from cosa_dist.distributed.worker import Evaluation, run_worker
from cosa_dist.training.checkpoint_files import checkpoints
from cosa_dist.training.loop import TrainingStoppedError
from cosa_dist.training.state import TrainState
from tests.integration.small_run import ALL_PARTS, PulledPlugError, make_shards, small_config, task_of, watch

STEPS = ALL_PARTS["training"]["steps"]
TIMES = ("seconds", "images_per_second", "loader_wait_share", "model_tflops")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


def history(folder: Path) -> dict[tuple[str, int], float]:
    """Every recorded number by name and step, without measured times; none may be recorded twice."""
    found: dict[tuple[str, int], float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record["metrics"].items():
            if not name.endswith(TIMES):
                assert (name, record["step"]) not in found, name
                found[name, record["step"]] = value
    return found


def task(config: RunConfig, folder: Path) -> WorkerTask:
    return task_of(config, folder, 2)


def test_an_interrupted_last_evaluation_is_repeated_and_no_step_before_it(shards, tmp_path, monkeypatch):
    config = small_config(shards, tmp_path, "late", **ALL_PARTS)
    folder, seen = tmp_path / "late", {}

    evaluate = Evaluation.__call__

    def pulled(self: Evaluation, state: TrainState, last: bool):
        if last:
            raise PulledPlugError
        return evaluate(self, state, last)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "__call__", pulled)
        with pytest.raises(PulledPlugError):
            run_worker(task(config, folder))
    reports = run_worker(task(config, folder), on_step=watch(seen))
    assert seen == {}
    assert set(reports) == {"online", "assignment"}
    assert ("final/miou_unfiltered", STEPS) in history(folder)
    assert (folder / "checkpoints" / "best.json").is_file()


@pytest.mark.parametrize("reading", ["mapped", "streaming"])
def test_two_interruptions_change_no_bit(shards, tmp_path, reading):
    settings = {**ALL_PARTS, "data": {**ALL_PARTS["data"], "reading": reading}}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    seen: dict[int, list[str]] = {}
    run_worker(task(small_config(shards, tmp_path, "straight", **settings), straight), on_step=watch(seen))
    again: dict[int, list[str]] = {}
    config = small_config(shards, tmp_path, "broken", **settings)
    for plug in (4, 10):
        with pytest.raises(PulledPlugError):
            run_worker(task(config, broken), on_step=watch(again, plug))
    run_worker(task(config, broken), on_step=watch(again))

    assert sorted(seen) == list(range(STEPS))
    assert again == seen
    assert history(broken) == history(straight)
    expected, found = (checkpoints(folder / "checkpoints")[-1] for folder in (straight, broken))
    assert found.name == expected.name == f"step-{STEPS:08d}"
    for name in ("online", "assignment", "thresholds"):
        other = load_file(expected / f"{name}.safetensors")
        for key, value in load_file(found / f"{name}.safetensors").items():
            assert torch.equal(value, other[key]), (name, key)
    moments = [torch.load(path / "optimizer.pt", weights_only=True) for path in (expected, found)]
    assert moments[0]["param_groups"] == moments[1]["param_groups"]
    for number, values in moments[0]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, moments[1]["state"][number][key]), (number, key)
    states = [json.loads((path / "state.json").read_text()) for path in (expected, found)]
    assert states[0]["best_score"] == states[1]["best_score"]
    notes = [json.loads((path.parent / "best.json").read_text()) for path in (expected, found)]
    assert notes[0] == notes[1]
    assert notes[0]["score"]["images"] == 4


def test_a_run_asked_to_stop_saves_at_its_next_line_of_log(shards, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run_worker(task(small_config(shards, tmp_path, "straight", **ALL_PARTS), straight))
    config = small_config(shards, tmp_path, "stopped", **ALL_PARTS)
    stopped.mkdir()
    (stopped / "stop").touch()
    with pytest.raises(TrainingStoppedError, match="after step 2, which is saved"):
        run_worker(task(config, stopped))
    assert [path.name for path in checkpoints(stopped / "checkpoints")] == ["step-00000002"]
    (stopped / "stop").unlink()
    run_worker(task(config, stopped))
    assert history(stopped) == history(straight)


def test_a_checkpoint_may_be_due_by_the_clock(shards, tmp_path):
    training = {**ALL_PARTS["training"], "checkpoint_every": 100, "keep_checkpoints": 9}
    settings = {**ALL_PARTS, "training": {**training, "checkpoint_minutes": 1e-9}}
    run_worker(task(small_config(shards, tmp_path, "clock", **settings), tmp_path / "clock"))
    found = [int(path.name.removeprefix("step-")) for path in checkpoints(tmp_path / "clock" / "checkpoints")]
    # Lines of log come at 2, 4, ...; the evaluations at 5, 10 and 11 save in any case.
    assert found == [2, 4, 5, 6, 8, 10, 11]


def test_a_damaged_newest_checkpoint_costs_its_steps_only(shards, tmp_path, caplog):
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    run_worker(task(small_config(shards, tmp_path, "straight", **ALL_PARTS), straight))
    config = small_config(shards, tmp_path, "damaged", **ALL_PARTS)
    with pytest.raises(PulledPlugError):
        run_worker(task(config, damaged), on_step=watch({}, 10))
    newest = checkpoints(damaged / "checkpoints")[-1]
    weights = newest / "assignment.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    samples: dict[int, list[str]] = {}
    run_worker(task(config, damaged), on_step=watch(samples))
    assert min(samples) == 6
    assert f"{newest.name}: assignment.safetensors is missing or has another size" in caplog.text
    assert history(damaged) == history(straight)


def test_a_corrupt_image_ends_the_run_with_the_name_of_its_record(tmp_path):
    shards = make_shards(tmp_path / "shards")
    path = sorted((shards / "train").glob("*.arrow"))[0]
    row = Dataset.from_file(str(path)).with_format("arrow").data.to_pylist()[0]
    content, image = path.read_bytes(), row["image"]["bytes"]
    path.write_bytes(content.replace(image, bytes(len(image))))
    with pytest.raises(RecordError, match=f"record '{row['id']}' of split 'train'.* decoded"):
        run_worker(task(small_config(shards, tmp_path, "corrupt", **ALL_PARTS), tmp_path / "corrupt"))
