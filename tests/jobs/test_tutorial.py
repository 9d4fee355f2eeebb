"""docs/tutorial.md by its own commands, in an empty folder, as somebody with tagged photographs meets it.

Only what costs time or a download is lowered: steps, sizes, and random weights.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from tests.support.programs import PROJECT, run_here

PAGE = PROJECT / "docs" / "tutorial.md"
QUICK = (
    "--recipe own --model.weights none --training.steps 4 --losses.warmup_steps 2 --optimizer.warmup_steps 1 "
    "--training.global_batch_size 2 --data.crop_size 64 --evaluation.size 64 --evaluation.scales [1.0] "
    "--evaluation.pictures 2 --data.loader_workers 0 --distributed.workers 1"
)


def commands() -> list[str]:
    """The lines of the page's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def bytes_of(content) -> bytes:
    return content if isinstance(content, bytes) else content.read()


def make_photographs(folder: Path) -> list[str]:
    """Write generated photographs with the table that the page describes."""
    names = synthetic_info().class_names
    rows = []
    for number, record in enumerate(synthetic_records("train", 40, seed=1, image_size=72)):
        name = f"holiday/{number:02d}.jpg" if number % 2 else f"{number:02d}.jpg"
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        decode_image(bytes_of(record.image)).save(path, quality=95)
        values = np.unique(decode_mask(bytes_of(record.mask)))
        tags = [names[value - 1] for value in values.tolist() if 0 < value <= len(names)]
        rows.append((name, ";".join(tags)))
    with (folder / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "tags"), *rows])
    return [name for name, _ in rows]


def test_the_page_has_the_four_commands_in_their_order():
    jobs = [re.search(r"jobs/(\w+)\.py", line).group(1) for line in commands()]
    assert jobs == ["ingest", "inspect_data", "train", "report", "predict", "export"]


@pytest.mark.slow
@pytest.mark.integration
def test_the_tutorial_leads_from_photographs_to_masks(shared_cluster, tmp_path, monkeypatch):
    names = make_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    with shared_cluster.joined():
        for line in commands():
            quick = line.replace("--recipe own", QUICK).replace("--crop-size 192", "--crop-size 64")
            program, *words = shlex.split(quick)
            assert program == "python"
            assert run_here(*words) == 0, line
    for name in names:
        photo = decode_image((tmp_path / "photos" / name).read_bytes())
        mask = decode_mask((tmp_path / "masks/masks" / name).with_suffix(".png").read_bytes())
        assert mask.shape == (photo.height, photo.width)
        assert (tmp_path / "masks/overlays" / name).is_file()
    assert json.loads((tmp_path / "masks/predictions.json").read_text())["skipped"] == []
    page = (tmp_path / "outputs/runs/own/report.html").read_text()
    assert "train/cam_to_seg" in page
    assert page.partition("Pictures of the last evaluation")[2].count("<figure>") == 2
    assert re.search(r'alt="CAM of [^"]+ at step 4"', page)
    assert (tmp_path / "own_model/model.safetensors").is_file()
