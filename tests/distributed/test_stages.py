"""A run of two stages with its workers in this process: stopped between the stages, it repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.data.shards.split import open_split
from cosa_dist.distributed import launch
from cosa_dist.distributed.labelling import run as labelling
from cosa_dist.distributed.launch import Outcome, execute
from cosa_dist.distributed.prepare import prepare_run, reopen, resolve, stage_two_config
from cosa_dist.distributed.run_folder import RunStoppedError, WorkerTask
from cosa_dist.distributed.worker import run_worker
from cosa_dist.training.checkpoint import save_checkpoint
from cosa_dist.training.state import build_state, build_trained_network
from tests.integration.small_run import make_shards

OPTIONS = read_recipe("tiny")["model"]["backbone_options"]
CPU = {"CPU": 1.0}


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the runs that are trained, each by one worker in this process."""
    names = []

    def train(run, resources):
        names.append(run.folder.name)
        run_worker(WorkerTask(run.config.model_dump(mode="json"), str(run.folder.path), "", "", False, 0, 1))
        run.folder.mark_finished()
        return Outcome.read(run.folder, run.note)

    monkeypatch.setattr(launch, "launch", train)
    monkeypatch.setattr(labelling, "node_resources", lambda: [CPU])
    return names


def test_a_stopped_run_of_two_stages_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    place = {
        "output": str(tmp_path),
        "name": "whole",
        "data": {"shards": str(make_shards(tmp_path / "shards"))},
        "stage_one": {
            "recipe": "tiny",
            "options": {"training.steps": 4, "losses.warmup_steps": 1},
            "start": "encoder",
        },
        "training": {"steps": 4},
        "tracking": {"enabled": False},
    }
    run = prepare_run(resolve(build_config(merge(read_recipe("tiny_ms"), place))))
    masks, labelled = run.folder.beside("pseudo-masks"), []

    def stopped_after_one(actor_class, task, method, items, **resources):
        for number in items:
            labelled.append(number)
            yield actor_class(task).label(number)
            if len(labelled) == 1:
                masks.stop_file.touch()

    monkeypatch.setattr(labelling, "map_over_actors", stopped_after_one)
    with pytest.raises(RunStoppedError, match="stopped as asked after"):
        execute(run, CPU)
    assert trained == ["whole-stage-one"]
    assert not run.folder.read_note().finished

    outcome = execute(reopen(run.folder, {}), CPU)
    assert trained == ["whole-stage-one", "whole-stage-two"]
    assert labelled == sorted(set(labelled)), "no finished shard is made again"
    assert outcome.folder == run.folder.beside("stage-two").path
    assert set(outcome.reports) == {"online", "average"}
    start = Path(run.folder.beside("stage-two").read_config().model.weights)
    assert start.parent == run.folder.beside("stage-one").checkpoints / "step-00000004"
    assert start.is_file()
    made = open_split(masks.path / "shards", "train")
    assert made.mask_count == made.size == 24
    quality = json.loads((masks.path / "shards" / "quality.json").read_text())
    recorded = json.loads((run.folder.metrics_file).read_text())["metrics"]
    assert recorded["pseudo_masks/miou"] == pytest.approx(quality["miou"])
    assert "stage_two/miou_unfiltered" in recorded
    assert all(one.read_note().finished for one in (run.folder, masks, run.folder.beside("stage-one")))
    with pytest.raises(ConfigError, match="is finished"):
        reopen(run.folder, {})


def test_an_encoder_of_another_kind_is_no_start(tmp_path):
    config = {
        "output": str(tmp_path),
        "data": {"shards": str(make_shards(tmp_path / "shards"))},
        "stage_one": {
            "recipe": "tiny",
            "options": {"model.backbone": "vit_small_patch16_224"},
            "start": "encoder",
        },
        "tracking": {"enabled": False},
    }
    with pytest.raises(ConfigError, match="different backbones, vit_small_patch16_224 and vit_t"):
        prepare_run(resolve(build_config(merge(read_recipe("tiny_ms"), config))))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"model.backbone_options": {**OPTIONS, "depth": 2}, "model.aux_layer": -2},
            "encoders differ in blocks.2",
        ),
        ({"evaluation.geometry": "longer_side", "evaluation.size": 42}, "stage-one: evaluation.size 42: "),
    ],
)
def test_what_would_fail_after_the_first_stage_is_refused_before_it(options, expected, tmp_path):
    config = {
        "output": str(tmp_path),
        "data": {"shards": str(make_shards(tmp_path / "shards"))},
        "stage_one": {"recipe": "tiny", "options": options, "start": "encoder"},
        "tracking": {"enabled": False},
    }
    with pytest.raises(ValueError, match=expected) as caught:
        prepare_run(resolve(build_config(merge(read_recipe("tiny_ms"), config))))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_second_stage_sees_the_colours_of_its_encoder(tmp_path):
    place = {
        "output": str(tmp_path),
        "data": {"shards": str(make_shards(tmp_path / "shards"))},
    }
    own = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    first = build_config(merge(read_recipe("tiny"), place))
    state = build_state(first, 3, torch.device("cpu"))
    state.online.backbone.colours = own
    encoder = save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1) / "online.safetensors"
    second = build_config(merge(read_recipe("tiny_ms"), {**place, "stage_one": {"start": "encoder"}}))
    assert second.model.normalisation == "encoder"
    config = stage_two_config(second, tmp_path / "shards", str(encoder))
    assert build_trained_network(config, 3).backbone.colours == own
