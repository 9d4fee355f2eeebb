"""Predicts on many pictures, in this process or over Ray's workers, and sums up what came of it.

Workers read the pictures and write the files themselves, so on a cluster both must lie on a file system that
every node sees; what comes back to the driver is small. A picture that cannot be read is skipped and the
others of its batch go on; a disk that cannot be written to ends the prediction.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from cosa_dist.inference.pictures import Picture, ReadPicture, Skipped, printable, read_picture
from cosa_dist.inference.segmentation import Segmentation, Segmenting
from cosa_dist.inference.trained import TrainedModel, load_trained
from cosa_dist.inference.writing import (
    MASKS,
    PROBABILITIES,
    RLE,
    annotations_of,
    coco_file,
    write_file,
    write_outputs,
)

MANIFEST = "predictions.json"
COCO = "segmentations.json"
MOST_PROBABILITIES = 2**28  # values (classes x pixels) of one picture's probabilities: 512 MiB of float16
THREADS = 2  # that read, and as many that write
BATCHES_OF_A_WORKER = 8  # that a worker over Ray is given at a time, so that it can read ahead
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PredictionTask:
    """What all workers of a prediction need, as plain values that travel to other nodes."""

    model: str  # run folder or exported folder
    out: str  # output folder, absolute
    checkpoint: str = ""  # see `load_trained`
    network: str = ""  # see `load_trained`
    outputs: tuple[str, ...] = (MASKS,)  # some of `writing.OUTPUTS`
    settings: dict[str, Any] = field(default_factory=dict)  # those of `evaluation.*` that are not the run's
    labels_from_classifier: bool = False  # protocol `predicted_labels` instead of `unfiltered`
    device: str = "cpu"
    threads: int = 0  # of torch; 0: its own choice


@dataclass(frozen=True)
class Predicted:
    """A picture that is done: its size, each class's fraction of its pixels, and perhaps its annotations."""

    name: str
    source: str
    width: int
    height: int
    shares: dict[str, float]
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What a prediction gave."""

    predicted: list[Predicted]
    skipped: list[Skipped]

    def pictures_with(self) -> list[tuple[str, int]]:
        """Foreground classes with the number of pictures in which they were found, most frequent first."""
        found = Counter(name for picture in self.predicted for name in picture.shares if name != "background")
        return found.most_common()


Outcomes = Iterator[list[Predicted | Skipped]]


class PredictionWorker:
    """Holds a network and predicts batch after batch, in this process or as a Ray actor."""

    def __init__(self, task: PredictionTask) -> None:
        # PIL warns of oddities (transparent palettes, strange EXIF) that its result does not suffer from.
        warnings.filterwarnings("ignore", module="PIL")
        if task.threads:
            torch.set_num_threads(task.threads)
        self.task = task
        device = torch.device(task.device)
        self.model = load_trained(Path(task.model), task.checkpoint, task.network, device)
        self.settings = self.model.config.evaluation.model_copy(update=task.settings)
        self.segmenting = Segmenting(
            self.model.network,
            self.settings,
            device,
            precision=self.model.config.training.precision,
            labels_from_classifier=task.labels_from_classifier,
            probabilities=PROBABILITIES in task.outputs,
        )

    def predict(self, pictures: Sequence[Picture]) -> list[Predicted | Skipped]:
        """Predict on some pictures and write their files; the outcomes come in the pictures' order."""
        return [outcome for batch in self.predict_batches(pictures) for outcome in batch]

    def predict_batches(self, pictures: Sequence[Picture]) -> Outcomes:
        """The same batch by batch; threads read the next batches and write the last one meanwhile."""
        size = self.settings.batch_size
        with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
            read = in_background(self._read, pictures, readers, 2 * size)
            segmented = (
                (batch, self._segmentations(list(islice(read, len(batch)))))
                for batch in _batches(pictures, size)
            )
            yield from in_background(self._write_batch, segmented, writers, 1)

    def _segmentations(
        self, read: Sequence[ReadPicture | Skipped]
    ) -> list[tuple[ReadPicture, Segmentation] | Skipped]:
        images = [one.pixels for one in read if isinstance(one, ReadPicture)]
        made = iter(self.segmenting(images) if images else [])
        return [one if isinstance(one, Skipped) else (one, next(made)) for one in read]

    def _write_batch(
        self, batch: tuple[Sequence[Picture], list[tuple[ReadPicture, Segmentation] | Skipped]]
    ) -> list[Predicted | Skipped]:
        return [
            one if isinstance(one, Skipped) else self._write(picture, *one)
            for picture, one in zip(*batch, strict=True)
        ]

    def _read(self, picture: Picture) -> ReadPicture | Skipped:
        """The picture, unless it cannot be read or its probabilities would not fit into memory."""
        read = read_picture(picture)
        if isinstance(read, Skipped) or PROBABILITIES not in self.task.outputs:
            return read
        height, width = read.pixels.shape[-2:]
        values = (len(self.model.class_names) + 1) * height * width
        if values <= MOST_PROBABILITIES:
            return read
        reason = (
            f"probabilities of {width}x{height} pixels would take "
            f"{values * 2 / 2**30:.1f} GiB; scale the picture down, or leave --outputs probabilities out"
        )
        return Skipped(picture.where, reason)

    def _write(self, picture: Picture, read: ReadPicture, made: Segmentation) -> Predicted:
        out, names = Path(self.task.out), self.model.class_names
        pixels = read.pixels.permute(1, 2, 0).numpy()
        write_outputs(out, picture.name, pixels, made, names, self.task.outputs, read.orientation)
        height, width = made.classes.shape
        counts = np.bincount(made.classes.ravel(), minlength=len(names) + 1).tolist()
        labelled = zip(("background", *names), counts, strict=True)
        shares = {name: count / (height * width) for name, count in labelled if count}
        annotations = annotations_of(made) if RLE in self.task.outputs else []
        return Predicted(picture.name, printable(picture.where), width, height, shares, annotations)


def _batches(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def predict_here(worker: PredictionWorker, pictures: Sequence[Picture]) -> Outcomes:
    """Predict in this process, batch by batch."""
    yield from worker.predict_batches(pictures)


def predict_over_ray(
    task: PredictionTask,
    pictures: Sequence[Picture],
    batch_size: int,
    workers: int,
    total: Mapping[str, float],
) -> Outcomes:
    """Predict on an initialised Ray cluster of `total` resources; batches come back as they are finished.

    With the device `auto` each worker gets a GPU if the cluster has any; no more workers than there is room
    for are started.
    """
    gpu = task.device.startswith("cuda") or (task.device == "auto" and total.get("GPU", 0) >= 1)
    room = int(total.get("GPU" if gpu else "CPU", 0))
    if not room:
        raise ValueError(f"--workers {workers}: the cluster has no {'GPU' if gpu else 'CPU'}")
    most = max(1, -(-len(pictures) // (batch_size * min(workers, room))))  # batches of each worker
    batches = _batches(pictures, batch_size * min(BATCHES_OF_A_WORKER, most))
    count = min(workers, room, len(batches))
    cpus = 1 if gpu else max(1, int(total.get("CPU", 1)) // max(count, 1))
    own = replace(task, device="cuda" if gpu else "cpu", threads=cpus)
    return map_over_actors(PredictionWorker, own, "predict", batches, count=count, cpus=cpus, gpus=int(gpu))


def in_background(
    work: Callable[[Item], Result], items: Iterable[Item], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Result]:
    """`work` of each item, in the items' order; the pool is up to `ahead` items further than the caller."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def map_over_actors(
    actor_class: type, task: Any, method: str, items: Sequence[Any], *, count: int, cpus: int, gpus: int
) -> Iterator[Any]:
    """Call `actor_class(task).method(item)` for every item on an initialised Ray cluster.

    Results come in the order in which they are finished. Each of `count` actors gets `cpus` and `gpus`; one
    that dies is started again, and its item repeated. What fails for good is a RuntimeError in one line.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(actor_class)
    actors: list[Any] = [remote.remote(task) for _ in range(count)]
    pool: Any = ActorPool(actors)
    try:
        yield from pool.map_unordered(lambda actor, item: getattr(actor, method).remote(item), items)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = " ".join(str(cause).split())[:600]
        raise RuntimeError(f"a worker failed with {type(cause).__name__}: {reason}") from None
    finally:
        for actor in actors:
            ray.kill(actor)


def summarise(
    outcomes: Outcomes, skipped: Sequence[Skipped], progress: Callable[[Summary], None] = lambda _: None
) -> Summary:
    """Collect the outcomes, sorted by name; `progress` sees the summary so far after each batch."""
    summary = Summary([], list(skipped))
    for batch in outcomes:
        summary.skipped.extend(one for one in batch if isinstance(one, Skipped))
        summary.predicted.extend(one for one in batch if isinstance(one, Predicted))
        progress(summary)
    summary.predicted.sort(key=lambda outcome: outcome.name)
    summary.skipped.sort(key=lambda outcome: outcome.where)
    return summary


def write_summary(task: PredictionTask, model: TrainedModel, summary: Summary) -> list[Path]:
    """Write `predictions.json` (what was done, each picture, what was skipped), and the RLE if asked for."""
    out = Path(task.out)
    content = {
        "model": {"run": model.name, "checkpoint": model.checkpoint, "network": model.which},
        "class_names": ["background", *model.class_names],
        "protocol": "predicted_labels" if task.labels_from_classifier else "unfiltered",
        "outputs": list(task.outputs),
        "pictures": [
            {key: value for key, value in vars(picture).items() if key != "annotations"}
            for picture in summary.predicted
        ],
        "skipped": [{"source": printable(s.where), "reason": s.reason} for s in summary.skipped],
    }
    files = {MANIFEST: content}
    if RLE in task.outputs:
        rows = ((p.name, p.width, p.height, p.annotations) for p in summary.predicted)
        files[COCO] = coco_file(rows, model.class_names)
    return [_write_json(out, name, content) for name, content in files.items()]


def _write_json(out: Path, name: str, content: Mapping[str, Any]) -> Path:
    text = json.dumps(content, indent=1).encode("ascii")
    return write_file(out, name, lambda file: file.write(text))
