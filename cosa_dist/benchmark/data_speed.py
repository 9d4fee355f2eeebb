"""Images per second of the training loader by itself, and of an evaluation.

Without shards a few pictures are generated and written as shards to a temporary folder, since reading and
decoding are what a loader costs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cosa_dist.benchmark.reading_speed import images_per_second
from cosa_dist.benchmark.report import Report, Row, Table, machine_facts
from cosa_dist.benchmark.stopwatch import in_turn, synchroniser
from cosa_dist.benchmark.workload import class_count, has_shards, prepare
from cosa_dist.config.schema import DataConfig, RunConfig
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.reading.loader import EvalSample, EvaluationLoader
from cosa_dist.data.reading.open import open_reading
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.evaluation.evaluator import evaluate
from cosa_dist.evaluation.settings import evaluation_settings

GENERATED_PICTURES = 64
GENERATED_SIDE = 400
EVALUATED_SIZE = (375, 500)
"""Of generated images for the evaluation: the commonest in VOC."""


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
    """Images per second of one core: reading, decoding, both views, cropped batches.

    Args:
        config: the run.
        rounds: passes; the best counts, since other work on the machine only slows it down.
        images: of each pass.
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
    """Images per second of the run's evaluation of one network, masks counted.

    Args:
        config: the run, with its evaluation section.
        device: where to compute.
        rounds: evaluations that count; the median is given.
        images: of each.
    """
    work = prepare(config, device, loader=False)
    classes = class_count(config)
    names = [f"class {index}" for index in range(1, classes + 1)]
    samples, source = generated_samples(images, classes), "generated in memory"
    if has_shards(config):
        split = open_reading(config.data, config.data.val_split)
        samples, source = list(EvaluationLoader(split, limit=images)), config.data.shards

    def work_once() -> None:
        evaluate(
            {"online": work.state.online},
            samples,
            class_names=names,
            settings=evaluation_settings(config),
            device=device,
            precision=work.accelerator.autocast,
        )

    seconds = in_turn({"evaluation": work_once}, rounds, synchroniser(device))["evaluation"]
    settings = config.evaluation
    row: Row = {
        "side": settings.size,
        "views per image": len(settings.scales) * (2 if settings.flip else 1),
        "dense CRF": "yes" if settings.crf.enabled else "no",
        "images/s": len(samples) / statistics.median(seconds),
        "s per image": statistics.median(seconds) / len(samples),
    }
    facts = {**machine_facts(device), "recipe": config.recipe, "backbone": config.model.backbone}
    return Report("evaluation", {**facts, "images": source}, [Table("evaluation of one network", [row])])
