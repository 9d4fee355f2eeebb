"""Both stages in one run: killed inside and between them and resumed, it equals its undisturbed twin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.config.loading import build_config, merge, read_recipe, to_yaml
from cosa_dist.data.shards.split import open_split
from cosa_dist.distributed.prepare import stage_one_config
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.reports.leaderboard import leaderboard
from cosa_dist.reports.tracked_runs import read_runs
from cosa_dist.tracking.mlflow_runs import connect
from tests.integration.small_run import make_shards

STEPS = 120


def chain(shards: Path, output: Path, name: str, **sections):
    place = {
        "output": str(output),
        "name": name,
        "data": {"shards": str(shards)},
        "stage_one": {
            "recipe": "tiny",
            "options": {"training.steps": STEPS, "training.checkpoint_every": 30},
        },
        "training": {"steps": STEPS, "checkpoint_every": 30},
        "segmenter": {"weigh": True},
        "distributed": {"workers": 1, "cpus_per_worker": 1},
    }
    return build_config(merge(merge(read_recipe("tiny_ms"), place), sections))


def test_the_first_stage_works_on_the_data_and_with_the_seed_of_the_whole(tmp_path):
    config = chain(tmp_path / "s", tmp_path, "whole", seed=5, data={"label": "mine", "crop_size": 64})
    first = stage_one_config(config)
    assert (first.kind, first.seed, first.name) == ("cosa", 5, "whole-stage-one")
    assert (first.data.shards, first.data.label) == (config.data.shards, "mine")
    assert first.data.crop_size == 32, "its own recipe's crop"
    assert first.training.steps == STEPS


def assert_same_networks(runs: Path) -> None:
    for stage in ("stage-one", "stage-two"):
        for network in ("online", "assignment"):
            place = Path("checkpoints", f"step-{STEPS:08d}", f"{network}.safetensors")
            expected = load_file(runs / f"twin-{stage}" / place)
            for key, value in load_file(runs / f"broken-{stage}" / place).items():
                assert torch.equal(value, expected[key]), (stage, key)


def assert_same_masks(runs: Path, shards: Path) -> None:
    masks = runs / "broken-pseudo-masks"
    made = [open_split(runs / f"{name}-pseudo-masks" / "shards", "train") for name in ("twin", "broken")]
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].mask_count == made[0].size == 24
    assert open_split(masks / "shards", "val").fingerprint == open_split(shards, "val").fingerprint
    quality = json.loads((masks / "shards" / "quality.json").read_text(encoding="utf-8"))
    assert quality["images"] == quality["images_with_truth"] == 24


def assert_tracked(runs: Path) -> None:
    quality = json.loads(
        (runs / "broken-pseudo-masks" / "shards" / "quality.json").read_text(encoding="utf-8")
    )
    note = RunFolder(runs / "broken").read_note()
    assert note.finished
    client = connect(note.tracking_uri)
    parent = client.get_run(note.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["pseudo_masks/miou"] == pytest.approx(quality["miou"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert sorted(run.data.tags["kind"] for run in children) == ["cosa", "pseudo_masks", "segmenter"]
    assert {run.info.status for run in children} == {"FINISHED"}
    tables = leaderboard(read_runs(note.tracking_uri), with_published=False)
    found = {(table.dataset, table.split, table.protocol): table.facts for table in tables}
    assert found["synthetic", "val", "unfiltered"] == "11 images"
    assert found["synthetic", "train", "pseudo_masks"] == "24 images"


@pytest.mark.nightly
@pytest.mark.integration
def test_a_run_killed_in_and_between_its_stages_equals_its_twin(ray_nodes, tmp_path, capsys):
    shards, runs = make_shards(tmp_path / "shards"), tmp_path / "runs"
    start, resume = {}, ("--resume", "broken", "--output", str(tmp_path))
    for name in ("twin", "broken"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(chain(shards, tmp_path, name)), encoding="utf-8")
        start[name] = ("--config", str(path))
    assert ray_nodes.run_here(*start["twin"]) == 0

    def kill_when(there, words):
        ray_nodes.start_driver(*words)
        ray_nodes.await_driver(there, "what comes before the kill")
        ray_nodes.kill_driver()

    one, two = (runs / f"broken-{stage}" / "checkpoints" for stage in ("stage-one", "stage-two"))
    masks = runs / "broken-pseudo-masks"
    kill_when((one / "step-00000030").is_dir, start["broken"])
    assert not (one / f"step-{STEPS:08d}").exists()
    kill_when(lambda: any(masks.glob(".shards.partial/*/*.json")), resume)
    assert not (masks / "shards").exists()
    kill_when((two / "step-00000030").is_dir, resume)
    assert not (two / f"step-{STEPS:08d}").exists()
    assert ray_nodes.run_here(*resume) == 0

    assert_same_networks(runs)
    assert_same_masks(runs, shards)
    assert_tracked(runs)
    assert ray_nodes.run_here(*resume) == 2
    assert "is finished" in capsys.readouterr().err
