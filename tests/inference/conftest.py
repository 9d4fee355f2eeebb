"""A tiny trained run that all tests of this folder share, and a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosa_dist.atomic import atomic_write
from cosa_dist.config.loading import to_yaml
from cosa_dist.distributed.worker import run_worker
from tests.integration.small_run import make_shards, small_config, task_of


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """Run folder of a tiny network, trained for three steps; its shards lie beside it."""
    place = tmp_path_factory.mktemp("trained")
    shards = make_shards(place / "shards")
    config = small_config(shards, place, "run", training={"steps": 3, "checkpoint_every": 3})
    atomic_write(place / "run" / "config.yaml", to_yaml(config))
    run_worker(task_of(config, place / "run", 4))
    return place / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five pictures in a tree, and a file that is none."""
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for name, size in (
        ("one.jpg", (40, 30)),
        ("street/two.png", (33, 50)),
        ("street/far/three.jpg", (64, 64)),
        ("street/far/drei mit Wörtern.JPG", (20, 70)),
        ("four.webp", (31, 31)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "street" / "notes.txt").write_text("no picture")
    return folder
