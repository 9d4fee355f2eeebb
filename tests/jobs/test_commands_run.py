"""Commands of README.md and docs/*.md as they stand, in a folder that has what they name.

What costs time is lowered by options behind the documented ones, of which the last counts: sizes of networks
and pictures, steps, numbers. Later commands use what earlier ones have made, so they keep their order.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cosa_dist.config.loading import load_config, read_recipe
from cosa_dist.data.catalog import COCO_CLASSES
from cosa_dist.distributed.prepare import prepare_run, resolve
from cosa_dist.distributed.run_folder import WorkerTask
from cosa_dist.distributed.worker import run_worker
from cosa_dist.tracking.mlflow_runs import finish_run
from tests.data.coco_files import CATEGORY_IDS, annotation, rectangle
from tests.data.conftest import draw_photo, write_pair
from tests.data.test_source_voc import write_mat
from tests.faults.cluster import FaultCluster
from tests.integration.small_run import make_shards
from tests.model.tiny_encoders import tiny_network
from tests.support.programs import PROJECT, run_here

pytestmark = pytest.mark.slow


def lowered(recipe: str) -> str:
    """The settings of a tiny recipe as options."""
    values, words = read_recipe(recipe), []
    for section, options in values.items():
        for name, value in options.items() if isinstance(options, dict) else ():
            words.append(f"--{section}.{name} {shlex.quote(json.dumps(value))}")
    return " ".join([*words, "--distributed.workers 1"])


TINY = lowered("tiny")
STEP = f"{TINY} --losses.warmup_steps 1 --rounds 1 --threads 1"

ALONE: dict[str, str] = {
    "python jobs/ingest.py coco COCO --annotations COCO/annotations --out data/coco": "",
    "python jobs/ingest.py folder PICTURES --out data/own": "",
    "python jobs/ingest.py folder photos --out data/own": "--overwrite",
    "python jobs/ingest.py folder PICTURES --val-fraction 0 --out SHARDS --processes N": "",
    "python jobs/ingest.py synthetic --out data/synthetic --train 1000 --val 150": "--train 6 --val 3",
    "python jobs/ingest.py synthetic --out SHARDS --train 256 --val 8 --image-size 448":
        "--train 6 --val 3 --image-size 64 --overwrite",
    "python jobs/benchmark.py reading --recipe voc_mini --data.shards SHARDS --threads 1 --images 192 "
    "--rounds 2": "--images 16 --rounds 1",
    "python jobs/benchmark.py reading --recipe voc_mini --data.shards SHARDS": "--images 16 --rounds 1",
    "python jobs/ingest.py voc VOC2012 --splits train_aug,val --sbd benchmark_RELEASE --out data/voc":
        "--overwrite",
    "python jobs/inspect_data.py data/voc --out outputs/data.html": "--crop-size 64",
    "python jobs/train.py --help": "",
    "python jobs/train.py --recipe voc_mini --losses.energy 0 --print-config": "",
    "python jobs/train.py --recipe NAME --print-config": "--recipe tiny",
    "python jobs/evaluate.py outputs/runs/NAME": "",
    "python jobs/evaluate.py outputs/runs/NAME --crf": "",
    "python jobs/evaluate.py outputs/runs/NAME --evaluation.protocol toco --crf": "",
    "python docs/evaluation_details.py outputs/runs/NAME --rows details.jsonl":
        "--only cosa 'toco + CRF'",
    "python jobs/report.py outputs/runs/NAME": "",
    "python jobs/report.py outputs/runs/NAME --out run.html": "",
    "python jobs/predict.py outputs/runs/NAME photos/ --out masks --outputs masks,overlays": "",
    "python jobs/export.py outputs/runs/NAME --out FOLDER --format weights,onnx": "",
    "python jobs/predict.py own_model photos --out masks": "",
    "python jobs/convert_weights.py best_seg.pth network.safetensors": "",
    "python jobs/replay.py NAME": "",
    "python jobs/compare.py outputs/runs/NAME outputs/runs/OTHER": "--json found.json",
    "python jobs/leaderboard.py": "",
    "python jobs/leaderboard.py --dataset VOC-mini --seeds": "",
    "python jobs/leaderboard.py --html outputs/leaderboard.html": "",
    "python jobs/leaderboard.py --dataset VOC --protocol true_labels --no-published --markdown "
    "--csv rows.csv --json tables.json": "",
    "python sweeps/run.py --space threshold_search --recipe voc_mini --trials 8 --warm-start "
    "--evaluation.every 100":
        "--print-config --data.shards data/voc_mini --model.weights none",
    "python jobs/ingest.py voc VOC2012 --splits test --out data/voc":
        "--splits train_aug,val,test --sbd benchmark_RELEASE --overwrite",
    "python jobs/predict.py outputs/runs/NAME data/voc --split test --out OUT --voc-server": "",
    "python jobs/benchmark.py step --recipe voc_released": STEP,
    "python -m tests.oracles --recipe voc_released": f"{STEP} --only energy",
    "python jobs/benchmark.py loader --recipe voc_released": f"{STEP} --images 16",
    "python jobs/benchmark.py checkpoint --recipe voc_released": STEP,
    "python jobs/benchmark.py evaluation --recipe voc_released": f"{STEP} --images 2",
    "python jobs/benchmark.py plan --recipe voc_released --machine a100 --nodes 2 --gpus-per-node 4": "",
}  # fmt: skip
"""command -> options behind it"""

OVER_RAY: dict[str, str] = {
    "python jobs/train.py --recipe voc_mini --data.shards data/voc_mini --model.weights deit_tiny.pth":
        f"{TINY} --name mini",
    "python jobs/train.py --recipe own --name own --data.shards data/own": TINY,
    "python jobs/train.py --resume own": "",
    "python jobs/train.py --resume NAME": "",
    "python jobs/pseudo_masks.py outputs/runs/NAME": "",
    "python jobs/pseudo_masks.py outputs/runs/NAME --pseudo_masks.refinement crf": "--name again",
    "python sweeps/run.py --space loss_weights --recipe voc_mini --trials 8 --evaluation.every 100":
        f"{TINY} --trials 2 --evaluation.every 5 --losses.warmup_steps 2 --name NAME",
    "python sweeps/run.py --resume NAME": "",
    "python jobs/train.py --config outputs/sweeps/NAME/best.yaml": "--name best",
    "python jobs/benchmark.py scaling --recipe voc_mini --workers 2 --threads 1": f"{STEP} --workers 1",
}  # fmt: skip
"""the same for what starts Ray"""

RUN = {**ALONE, **OVER_RAY}


def voc_devkit(place: Path) -> None:
    """A VOC devkit of twelve drawn pictures, and SBD with four of them."""
    home, ids = place / "VOC2012", [f"2007_{number:06d}" for number in range(12)]
    for number, name in enumerate(ids):
        mask = home / "SegmentationClass" / f"{name}.png"
        write_pair(home / "JPEGImages" / f"{name}.jpg", mask, number, (number + 1, 20, 255), True)
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, part in (("train", ids[:6]), ("val", ids[6:9]), ("test", ids[9:])):
        (lists / f"{split}.txt").write_text("\n".join(part) + "\n")
    data = place / "benchmark_RELEASE" / "dataset"
    for value, name in enumerate(ids[:4], start=1):
        write_mat(data / "cls" / f"{name}.mat", np.full((30, 39 + value), value, dtype=np.uint8))
    (data / "train.txt").write_text("\n".join(ids[:2]) + "\n")
    (data / "val.txt").write_text("\n".join(ids[2:4]) + "\n")


def coco_folder(place: Path) -> None:
    """COCO of six drawn pictures with its official annotations."""
    for split, ids in (("train", range(1, 5)), ("val", range(5, 7))):
        folder = place / "COCO" / f"{split}2014"
        folder.mkdir(parents=True)
        images = []
        for number in ids:
            name = f"COCO_{split}2014_{number:012d}.jpg"
            Image.fromarray(draw_photo(number, 40, 30)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        notes = [annotation(n, n, CATEGORY_IDS[n], rectangle(3, 3, 20, 20)) for n in ids]
        categories = [{"id": n, "name": name} for n, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)]
        content = {"images": images, "annotations": notes, "categories": categories}
        file = place / "COCO" / "annotations" / f"instances_{split}2014.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def train(name: str, options: str) -> None:
    """Train in this process, as one worker would, with its tracking run."""
    config = resolve(load_config("voc_mini", None, ["--name", name, *shlex.split(options)]))
    run = prepare_run(config)
    values = run.config.model_dump(mode="json")
    run_worker(WorkerTask(values, str(run.folder.path), run.note.tracking_uri, run.note.run_id, False, 0, 1))
    run.folder.mark_finished()
    finish_run(run.note.tracking_uri, run.note.run_id, "FINISHED")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data sets, photographs, weights and a trained run NAME."""
    folder = tmp_path_factory.mktemp("place")
    voc_devkit(folder)
    coco_folder(folder)
    make_shards(folder / "data" / "voc_mini")
    for number in range(40):
        for root in ("PICTURES", "photos"):
            path = folder / root / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_photo(number, 48, 40)).save(path)
    save_file(tiny_network("vit").state_dict(), folder / "assignment.safetensors")
    (folder / "own_model").symlink_to("FOLDER")
    (folder / "docs").symlink_to(PROJECT / "docs")
    threads = torch.get_num_threads()
    with chdir(folder):
        for line in (
            "jobs/convert_weights.py assignment.safetensors best_seg.pth",
            "jobs/ingest.py voc VOC2012 --splits train_aug,val --sbd benchmark_RELEASE --out data/voc",
        ):
            assert run_here(*shlex.split(line)) == 0, line
        train("NAME", f"{TINY} --data.shards data/voc --data.train_split train_aug")
        Path("outputs/runs/OTHER").symlink_to("NAME")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ray(place: Path, shared_cluster: FaultCluster) -> Iterator[None]:
    """One Ray for all commands; it has room for a sweep's driver and worker."""
    with shared_cluster.joined():
        yield


def interrupt(name: str) -> None:
    """Make a finished run one whose driver was killed behind its last checkpoint: only such runs go on."""
    note = Path("outputs/runs") / name / "run.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "finished": False}))


def ends_well(line: str) -> None:
    """Run a documented command with its options."""
    if line.startswith("python jobs/train.py --resume"):
        interrupt(line.split()[-1])
    words = [word for word in shlex.split(f"{line} {RUN[line]}") if word != "OMP_NUM_THREADS=1"]
    assert words[0] == "python"
    assert run_here(*("2" if word == "N" else word for word in words[1:])) == 0


@pytest.mark.parametrize("line", ALONE)
def test_a_command_ends_well(place: Path, line: str) -> None:
    ends_well(line)


@pytest.mark.integration
@pytest.mark.parametrize("line", OVER_RAY)
def test_a_command_that_starts_ray_ends_well(ray: None, line: str) -> None:
    ends_well(line)
