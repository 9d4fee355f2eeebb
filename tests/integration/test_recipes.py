"""Every full-size recipe really starts: random weights, two co-training steps, an interruption between them,
resume, an evaluation of one image, a checkpoint. Sizes that cost time are lowered: the batch, and but for one
recipe the crop, whose full size all of them have in common."""

from __future__ import annotations

import gc

import pytest
from rich.console import Console

from cosa_dist.config.loading import load_config, recipe_names
from cosa_dist.data.catalog import COCO, VOC, renamed
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.sources.synthetic import synthetic_records
from cosa_dist.distributed.worker import run_worker
from tests.integration.small_run import curve, task_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# These run whole elsewhere: the demo by `make demo`, `own` by the tutorial, small ones on real photographs.
SMALL = {"tiny", "tiny_ms", "demo", "voc_mini", "voc_mini_fast", "voc_mini_ms", "coco_mini", "own"}
# They differ from their VOC twins in data, steps and first stage only.
TWINS = {"coco_ms", "coco_fast"}
FULL = [name for name in recipe_names() if name not in SMALL | TWINS]
FULL_CROP = {"voc_released"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards with the classes of VOC and of COCO, made of generated pictures."""
    root = tmp_path_factory.mktemp("shards")
    for info in (VOC, COCO):
        counts = {"train": 2, "val": 1}
        sources = {name: synthetic_records(name, n, seed=5, image_size=320) for name, n in counts.items()}
        ingest(sources, renamed(info, f"{info.name}-smoke"), root / info.name, console=Console(quiet=True))
    return root


def smoke_config(recipe: str, shards, output):
    """The recipe with one image a step, two steps and no loss warm-up; network, losses and scales stay.

    A segmenter learns from true masks, sees two images a step (its batch norm needs them) and is evaluated at
    one scale.
    """
    second_stage = {
        "supervision": "truth",
        "training.global_batch_size": 2,
        "evaluation.scales": [1.0],
    }
    small_crop = {"data.crop_size": 192, "evaluation.size": 192}
    return load_config(
        recipe,
        None,
        {
            "name": recipe,
            "output": str(output),
            "data.shards": str(shards / recipe.split("_")[0]),
            "data.train_split": "train",
            "data.loader_workers": 0,
            "model.weights": "none",
            "losses.warmup_steps": 0,
            "optimizer.warmup_steps": 1,
            "training.steps": 2,
            "training.global_batch_size": 1,
            "training.log_every": 1,
            "training.checkpoint_every": 1,
            "evaluation.pictures": 0,
            **({} if recipe in FULL_CROP else small_crop),
            **(second_stage if recipe.endswith("_ms") else {}),
        },
    )


@pytest.mark.parametrize("recipe", FULL)
def test_recipe_trains_stops_resumes_and_evaluates(recipe, shards, tmp_path):
    config = smoke_config(recipe, shards, tmp_path)
    batch = config.training.global_batch_size
    own_crop = load_config(recipe, None, {}).data.crop_size
    assert own_crop == (512 if config.kind == "segmenter" else 448)
    assert config.data.crop_size == (own_crop if recipe in FULL_CROP else 192)
    folder = tmp_path / "run"

    def interrupt(state, batches):
        if state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(task_of(config, folder, batch), on_step=interrupt)
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000001"]

    gc.collect()
    reports = run_worker(task_of(config, folder, batch))
    assert [report.images for report in reports.values()] == [1, 1]
    assert (folder / "checkpoints" / "step-00000002" / "state.json").is_file()
    assert len(curve(folder, "train/total")) == 2
    terms = ("classification", "cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy")
    for term in ("masks",) if config.kind == "segmenter" else terms:
        assert all(value != 0 for value in curve(folder, f"train/{term}")), term
