"""Every full-size recipe really starts: random weights, two co-training steps, an interruption between them,
resume, an evaluation of one image, a checkpoint.

Sizes that cost time are lowered: batch, crop, and depth and width of the encoder. One recipe runs at its full
size in the nightly tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cosa_dist.config.loading import load_config, recipe_names
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import COCO, VOC, renamed
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.sources.synthetic import synthetic_records
from cosa_dist.distributed.worker import run_worker
from tests.integration.small_run import PulledPlugError, curve, task_of, watch

pytestmark = pytest.mark.integration

# These run elsewhere: the demo by `make demo`, `own` by the tutorial, small ones on real photographs.
SMALL = {"tiny", "tiny_ms", "demo", "own", "coco_mini"}
SMALL |= {name for name in recipe_names() if name.startswith("voc_mini")}
FULL = [name for name in recipe_names() if name not in SMALL]
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": {"depth": 3, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch14_reg4_dinov2": {"depth": 3, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_dinov3": {"depth": 3, "embed_dim": 48, "num_heads": 3},
    "swin_base_patch4_window12_384": {"depths": [1, 1, 2, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2]},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the classes of VOC and of COCO, made of generated pictures."""
    root = tmp_path_factory.mktemp("shards")
    for info in (VOC, COCO):
        counts = {"train": 2, "val": 1}
        sources = {name: synthetic_records(name, n, seed=5, image_size=320) for name, n in counts.items()}
        ingest(sources, renamed(info, f"{info.name}-smoke"), root / info.name, console=Console(quiet=True))
    return root


def smoke_config(recipe: str, shards: Path, output: Path, size: dict[str, Any]) -> RunConfig:
    """The recipe with one image a step, two steps and no loss warm-up; losses and scales stay.

    A segmenter learns from true masks, sees two images a step (its batch norm needs them) and is evaluated at
    one scale.
    """
    second_stage = {
        "supervision": "truth",
        "segmenter.decoder_channels": 32,
        "training.global_batch_size": 2,
        "evaluation.scales": [1.0],
    }
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
            **size,
            **(second_stage if recipe.endswith("_ms") else {}),
        },
    )


def train_interrupted(config: RunConfig, folder: Path) -> None:
    """Train two steps with a kill in the second one; check what it leaves and what it has learned."""
    task = task_of(config, folder, config.training.global_batch_size)
    with pytest.raises(PulledPlugError):
        run_worker(task, on_step=watch({}, 2))
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000001"]
    reports = run_worker(task)
    assert [report.images for report in reports.values()] == [1, 1]
    assert (folder / "checkpoints" / "step-00000002" / "state.json").is_file()
    assert len(curve(folder, "train/total")) == 2
    terms = ("classification", "cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy")
    for term in ("masks",) if config.kind == "segmenter" else terms:
        assert all(value != 0 for value in curve(folder, f"train/{term}")), term


@pytest.mark.parametrize("recipe", FULL)
def test_recipe_trains_stops_resumes_and_evaluates(recipe, shards, tmp_path):
    own = load_config(recipe, None, {})
    assert own.data.crop_size == (512 if own.kind == "segmenter" else 448)
    encoder = own.model.backbone_options | SMALL_ENCODERS[own.model.backbone]
    side = 112 if "patch14" in own.model.backbone else 128
    size = {"data.crop_size": side, "evaluation.size": side, "model.backbone_options": encoder}
    train_interrupted(smoke_config(recipe, shards, tmp_path, size), tmp_path / "run")


@pytest.mark.nightly
def test_a_recipe_at_its_full_size(shards, tmp_path):
    train_interrupted(smoke_config("voc_released", shards, tmp_path, {}), tmp_path / "run")
