"""`ray job submit --working-dir .` from a checkout full of data packs the code, nothing heavy."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CODE = (
    "cosa_dist/data/order.py",
    "cosa_dist/config/recipes/demo.yaml",
    "jobs/train.py",
    "pyproject.toml",
)
HEAVY = (
    "outputs/run/step_100/model.safetensors",
    "outputs/run/log.jsonl",
    "data/VOC/image.jpg",
    "shards/voc/00000.arrow",
    "elsewhere/00001.arrow",
    "elsewhere/weights.pth",
    "mlruns/1/artifact.png",
    "mlflow.db",
    ".git/objects/pack/pack-1.pack",
    ".venv/lib/big.so",
    "cosa_dist/data/__pycache__/order.cpython-311.pyc",
    "slurm-17.out",
)


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_only_the_code_travels(tmp_path: Path, include_gitignore: bool) -> None:
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    checkout = tmp_path / "checkout"
    for name in (*CODE, *HEAVY):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for name in (".rayignore", ".gitignore"):
        shutil.copy(PROJECT / name, checkout / name)

    package = tmp_path / "package.zip"
    packaging.create_package(
        str(checkout),
        package,
        include_gitignore=include_gitignore,
        include_parent_dir=False,
        excludes=[],
    )

    with zipfile.ZipFile(package) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    assert packed - {".rayignore", ".gitignore"} == set(CODE)
