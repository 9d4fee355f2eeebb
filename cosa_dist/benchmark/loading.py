"""Images per second of the training loader, also beside another commit's, of reading and of evaluation.

Without shards a few pictures are generated and written as shards to a temporary folder, since reading and
decoding are what a loader costs.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from cosa_dist.benchmark.measure import (
    Report,
    Row,
    Table,
    build_of,
    machine_facts,
    median_seconds,
    result_of,
)
from cosa_dist.benchmark.workload import class_count, has_shards, prepare
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import DataConfig, RunConfig
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.reading.loader import EvalSample, EvaluationLoader, TrainingLoader, open_reading
from cosa_dist.data.sources.record import SourceRecord
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.evaluation.protocols import summed_views

GENERATED_PICTURES = 64
GENERATED_SIDE = 400
EVALUATED_SIZE = (375, 500)
"""of generated images for the evaluation: the commonest in VOC"""
BATCH = 8
COMPARED_SIZES = ((500, 375), (640, 480))
"""width and height of generated photographs for a comparison: the commonest in VOC and COCO"""

PASS = """
import json, sys, time, zlib
import torch
try:
    from cosa_dist.data.reading.loader import TrainingLoader
    from cosa_dist.data.shards.split import open_split
except ImportError:  # the layout of earlier commits
    from cosa_dist.data.loader import TrainingLoader
    from cosa_dist.data.shards import open_split
torch.set_num_threads(1)  # as in a loader process
shards, name, crop, batch, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
split = open_split(shards, name)
settings = {"crop_size": crop, "seed": 0, "global_batch_size": batch}
list(TrainingLoader(split, stop_step=1, **settings))
start, batches = time.process_time(), 0
digest = 0
seconds = 0.0
for [made] in TrainingLoader(split, stop_step=steps, **settings):
    seconds += time.process_time() - start
    for views in (made.weak, made.strong):
        digest = zlib.crc32(views.numpy().tobytes(), digest)
    start = time.process_time()
print(json.dumps([seconds, digest]))
"""
"""a pass of the training loader of any commit: prints its CPU seconds and a digest of its views"""


def images_per_second(data: DataConfig, images: int, crop_size: int) -> tuple[float, float]:
    """Images per second of this process's CPU time and of wall time, of one pass over some images.

    Raises ConfigError for fewer images than a batch has.
    """
    if images < BATCH:
        raise ConfigError(f"--images {images}: give {BATCH} or more, a batch of the loader")
    split = open_reading(data, data.train_split)
    loader = TrainingLoader(
        split, crop_size=crop_size, seed=0, global_batch_size=BATCH, stop_step=images // BATCH
    )
    cpu, wall = time.process_time(), time.perf_counter()
    made = sum(len(batch.ids) for step in loader for batch in step)
    return made / (time.process_time() - cpu), made / (time.perf_counter() - wall)


@contextmanager
def readable_shards(config: RunConfig) -> Iterator[tuple[DataConfig, str]]:
    """The run's data section if its shards are here, else one of generated pictures; and its source."""
    if has_shards(config):
        yield config.data, config.data.shards
        return
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        pictures = synthetic_records("train", GENERATED_PICTURES, seed=0, image_size=GENERATED_SIDE)
        ingest({"train": pictures}, synthetic_info(), shards)
        changed = {"shards": str(shards), "train_split": "train", "reading": "mapped"}
        words = f"{GENERATED_PICTURES} generated pictures of {GENERATED_SIDE} x {GENERATED_SIDE}"
        yield config.data.model_copy(update=changed), words


def measure_loader(config: RunConfig, rounds: int, images: int) -> Report:
    """The training loader by itself: reading, decoding, both views, cropped batches.

    The best of `rounds` passes of `images` each counts, since other work on the machine only slows it down.
    """
    with readable_shards(config) as (data, source):
        found = [images_per_second(data, images, config.data.crop_size) for _ in range(rounds)]
    per_core = max(cpu for cpu, _ in found)
    row: Row = {
        "crop": config.data.crop_size,
        "images/s per core": per_core,
        "images/s (wall, one process)": max(wall for _, wall in found),
        "ms of a core per image": 1000 / per_core,
    }
    facts = {**machine_facts(torch.device("cpu")), "recipe": config.recipe, "pictures": source}
    note = (
        "a worker that trains X images/s needs X / (images/s per core) cores for its loader: "
        f"100 images/s need {100 / per_core:.1f}"
    )
    return Report("loader", facts, [Table("training loader", [row])], [note])


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """A picture with as much detail as photographs have: amplitudes fall as 1 / frequency, in all colours."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    grey, *tints = (
        np.fft.irfft2(np.fft.rfft2(generator.standard_normal((height, width))) * fall, (height, width))
        for _ in range(4)
    )
    planes = [grey / grey.std() + 0.4 * tint / tint.std() for tint in tints]
    return Image.fromarray(np.clip(120 + 50 * np.stack(planes, axis=2), 0, 255).astype(np.uint8))


def photograph_shards(folder: Path, width: int, height: int) -> Path:
    """Write shards of generated photographs (JPEG, quality 90) below `folder`; return where they are."""
    records = []
    for number in range(GENERATED_PICTURES):
        written = io.BytesIO()
        photograph(width, height, number).save(written, "JPEG", quality=90)
        records.append(SourceRecord(f"photograph_{number}", written.getvalue(), tags=(0,)))
    shards = folder / f"{width}x{height}"
    ingest({"train": records}, synthetic_info(), shards)
    return shards


def loader_pass(build: Path, shards: str, split: str, crop_size: int, images: int) -> tuple[float, int]:
    """CPU seconds and the views' digest of a pass of a build's training loader; RuntimeError: it fails."""
    words = [shards, split, str(crop_size), str(BATCH), str(images // BATCH)]
    seconds, digest = result_of(build, PASS, *words, threads=1)
    return seconds, digest


def measure_loader_against(config: RunConfig, commit: str, rounds: int, images: int) -> Report:
    """The training loader of this code in turn with another commit's: images per CPU second, same views?

    On the run's shards if they are here, else on generated photographs of `COMPARED_SIZES`. The median of
    `rounds` passes of `images` each counts, CPU time of a process of its own: other work disturbs it little.
    """
    if images < BATCH:
        raise ConfigError(f"--images {images}: give {BATCH} or more, a batch of the loader")
    here, side, split = Path(__file__).resolve().parents[2], config.data.crop_size, config.data.train_split
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, build_of(commit) as other:
        if has_shards(config):
            sources = {config.data.shards: config.data.shards}
        else:
            split = "train"
            sources = {f"{w} x {h}": str(photograph_shards(Path(folder), w, h)) for w, h in COMPARED_SIZES}
        for name, shards in sources.items():
            found: dict[Path, list[tuple[float, int]]] = {other: [], here: []}
            for _ in range(rounds):
                for build, passes in found.items():
                    passes.append(loader_pass(build, shards, split, side, images))
            made = images // BATCH * BATCH
            before, now = (median(made / seconds for seconds, _ in passes) for passes in found.values())
            ratios = [old / new for (old, _), (new, _) in zip(*found.values(), strict=True)]
            same = len({digest for passes in found.values() for _, digest in passes}) == 1
            rows.append(
                {
                    "pictures": name,
                    f"images/CPU-s, {commit}": before,
                    "images/CPU-s, this code": now,
                    "times": median(ratios),
                    "views": "the same, bit for bit" if same else "differ",
                }
            )
    facts = {**machine_facts(torch.device("cpu")), "crop": side, "images of a pass": images, "rounds": rounds}
    return Report("loader", facts, [Table(f"training loader, in turn with {commit}", rows)])


@contextmanager
def file_server(folder: str) -> Iterator[str]:
    """Serve a folder with `python -m http.server` on loopback; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure_reading(config: RunConfig, rounds: int, images: int) -> Report:
    """The loader's reading modes in turn: local, over HTTP on loopback, from a cache; the best round."""
    with (
        readable_shards(config) as (data, source),
        file_server(data.shards) as url,
        tempfile.TemporaryDirectory() as cache,
    ):
        ways = {
            "mapped, local": {"reading": "mapped"},
            "streaming, local": {"reading": "streaming"},
            "streaming, HTTP": {"reading": "streaming", "shards": url},
            "streaming, HTTP, cached": {"reading": "streaming", "shards": url, "cache": cache},
        }
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, changes in ways.items():
                read = data.model_copy(update=changes)
                found[way].append(images_per_second(read, images, config.data.crop_size))
    best = {way: max(speeds) for way, speeds in found.items()}
    rows: list[Row] = [
        {"reading": way, "images/CPU-s": cpu, "images/s": wall, "of mapped": cpu / best["mapped, local"][0]}
        for way, (cpu, wall) in best.items()
    ]
    facts = {**machine_facts(torch.device("cpu")), "pictures": source, "crop": config.data.crop_size}
    return Report("reading", facts, [Table("training loader by way of reading", rows)])


def generated_samples(images: int, classes: int, size: tuple[int, int] = EVALUATED_SIZE) -> list[EvalSample]:
    """Images with masks of random numbers: two objects in each."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(images):
        mask = torch.zeros(size, dtype=torch.uint8)
        names = torch.randint(1, classes + 1, (2,), generator=generator)
        mask[: size[0] // 2, : size[1] // 3], mask[size[0] // 2 :, size[1] // 2 :] = names[0], names[1]
        labels = torch.zeros(classes)
        labels[names - 1] = 1.0
        picture = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append(EvalSample(f"generated {index}", picture, mask, labels, None))
    return samples


def measure_evaluation(config: RunConfig, device: torch.device, rounds: int, images: int) -> Report:
    """The run's evaluation of one network on some images, masks counted; the median of `rounds`."""
    work = prepare(config, device, loader=False)
    classes = class_count(config)
    names = [f"class {index}" for index in range(1, classes + 1)]
    samples, source = generated_samples(images, classes), "generated in memory"
    if has_shards(config):
        split = open_reading(config.data, config.data.val_split)
        samples, source = list(EvaluationLoader(split, limit=images)), config.data.shards

    evaluator = Evaluator.of_run(config, names, device=device, precision=work.accelerator.autocast)

    def once() -> None:
        evaluator.evaluate({"online": work.state.online}, samples)

    seconds = median_seconds(once, rounds, device)
    settings = config.evaluation
    row: Row = {
        "side": settings.size,
        "views per image": summed_views(settings.model_copy(update={"merging": "sum"})),
        "dense CRF": "yes" if settings.crf.enabled else "no",
        "images/s": len(samples) / seconds,
        "s per image": seconds / len(samples),
    }
    facts = {**machine_facts(device), "recipe": config.recipe, "backbone": config.model.backbone}
    return Report("evaluation", {**facts, "images": source}, [Table("evaluation of one network", [row])])
