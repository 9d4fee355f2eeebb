"""The examples of docs/extending.md apply to the package as it is, and work together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
STEP = """
import json, sys, torch
from cosa_dist.benchmark.workload import prepare
from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.training.step import training_step

changes = {"data": {"shards": sys.argv[1]}, "losses": {"smoothness": 0.5}}
changes["model"] = {"backbone": "tiny_conv", "backbone_options": {}}
work = prepare(build_config(merge(read_recipe("tiny"), changes)), torch.device("cpu"))
terms = training_step(work.state, work.network, next(work.steps), work.accelerator)
print(json.dumps({name: float(value) for name, value in terms.items()}))
"""


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the package with all examples of the page."""
    copy = tmp_path / "project"
    for folder in ("cosa_dist", "jobs"):
        shutil.copytree(PROJECT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    diffs = re.findall(r"^```diff\n(.*?)^```$", (PROJECT / "docs" / "extending.md").read_text(), re.M | re.S)
    assert len(diffs) == 3
    for diff in diffs:
        apply = ["git", "apply", "-p1", "--unidiff-zero", "-"]
        done = subprocess.run(apply, cwd=copy, input=diff, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return copy


def test_a_step_with_the_pages_loss_source_and_backbone(extended: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tags = (np.arange(24).reshape(12, 2) % 3 == 0).astype(int)
    np.savez(tmp_path / "own.npz", images=random.integers(0, 255, (12, 40, 40, 3), dtype=np.uint8), tags=tags)
    (tmp_path / "names.txt").write_text("cat\ndog\n")

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(extended)}
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=extended, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shards = str(tmp_path / "shards")
    classes = ["--classes", str(tmp_path / "names.txt")]
    made = run(
        "jobs/ingest.py",
        "npz",
        str(tmp_path / "own.npz"),
        *classes,
        "--out",
        shards,
        "--val-fraction",
        "0.25",
    )
    assert "12 images" in made
    terms = json.loads(run("-c", STEP, shards).splitlines()[-1])
    assert terms["smoothness"] > 0
    assert terms["total"] > terms["classification"] + terms["aux_classification"] + 0.5 * terms["smoothness"]
