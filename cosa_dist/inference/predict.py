"""Predicts on many pictures, in this process or over Ray's workers, and sums up what came of it.

Workers read the pictures and write the files themselves, so on a cluster both must lie on a file system that
every node sees; what comes back to the driver is small.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosa_dist.inference.coco_rle import coco_file
from cosa_dist.inference.pictures import Picture, Skipped, printable
from cosa_dist.inference.trained import TrainedModel
from cosa_dist.inference.worker import Predicted, PredictionTask, PredictionWorker
from cosa_dist.inference.writing import RLE, write_file

MANIFEST = "predictions.json"
COCO = "segmentations.json"
Outcomes = Iterator[list[Predicted | Skipped]]


@dataclass(frozen=True)
class Summary:
    """What a prediction gave."""

    predicted: list[Predicted]
    skipped: list[Skipped]

    def pictures_with(self) -> list[tuple[str, int]]:
        """Foreground classes with the number of pictures in which they were found, most frequent first."""
        found = Counter(name for picture in self.predicted for name in picture.shares if name != "background")
        return found.most_common()


def batches(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """Cut the pictures into batches of `size`."""
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def predict_here(worker: PredictionWorker, pictures: Sequence[Picture]) -> Outcomes:
    """Predict in this process, batch by batch."""
    for batch in batches(pictures, worker.settings.batch_size):
        yield worker.predict(batch)


def predict_over_ray(
    task: PredictionTask,
    pictures: Sequence[Picture],
    batch_size: int,
    workers: int,
    total: Mapping[str, float],
) -> Outcomes:
    """Predict on an initialised Ray cluster; batches come back as they are finished.

    Args:
        task: what to do; with the device `auto`, each worker gets a GPU if the cluster has any.
        pictures: on what.
        batch_size: pictures of one pass.
        workers: how many; no more than the cluster has room for are started.
        total: resources of the cluster.

    Raises:
        ValueError: no room for a single worker.
        RuntimeError: a worker failed; the reason in one line.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    gpu = task.device.startswith("cuda") or (task.device == "auto" and total.get("GPU", 0) >= 1)
    room = int(total.get("GPU" if gpu else "CPU", 0))
    if not room:
        raise ValueError(f"--workers {workers}: the cluster has no {'GPU' if gpu else 'CPU'}")
    cut = batches(pictures, batch_size)
    count = min(workers, room, len(cut))
    share = max(1, int(total.get("CPU", 1)) // max(room if gpu else count, 1))
    share = 1 if gpu else share
    own = replace(task, device="cuda" if gpu else "cpu", threads=share)
    actor = ray.remote(num_cpus=share, num_gpus=int(gpu), max_restarts=2, max_task_retries=2)(
        PredictionWorker
    )
    actors: list[Any] = [actor.remote(own) for _ in range(count)]
    try:
        yield from ActorPool(actors).map_unordered(lambda one, batch: one.predict.remote(batch), cut)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"a worker: {' '.join(str(cause).split())[:600]}") from None
    finally:
        for one in actors:
            ray.kill(one)


def summarise(
    outcomes: Outcomes, skipped: Sequence[Skipped], progress: Callable[[Summary], None] = lambda _: None
) -> Summary:
    """Collect the outcomes, sorted by name; `progress` sees the summary so far after each batch."""
    summary = Summary([], list(skipped))
    for batch in outcomes:
        for outcome in batch:
            if isinstance(outcome, Skipped):
                summary.skipped.append(outcome)
            else:
                summary.predicted.append(outcome)
        progress(summary)
    summary.predicted.sort(key=lambda outcome: outcome.name)
    summary.skipped.sort(key=lambda outcome: outcome.where)
    return summary


def write_summary(task: PredictionTask, model: TrainedModel, summary: Summary) -> list[Path]:
    """Write `predictions.json` (what was done, each picture, what was skipped) and the RLE; return the files.

    Raises:
        WriteError: the disk is full.
    """
    out = Path(task.out)
    content = {
        "model": {"run": model.name, "checkpoint": model.checkpoint, "network": model.which},
        "class_names": ["background", *model.class_names],
        "protocol": "predicted_labels" if task.labels_from_classifier else "unfiltered",
        "outputs": list(task.outputs),
        "pictures": [
            {
                "name": p.name,
                "source": printable(p.where),
                "width": p.width,
                "height": p.height,
                "shares": p.shares,
            }
            for p in summary.predicted
        ],
        "skipped": [{"source": printable(s.where), "reason": s.reason} for s in summary.skipped],
    }
    files = [_write_json(out, MANIFEST, content)]
    if RLE in task.outputs:
        rows = ((p.name, p.width, p.height, p.annotations) for p in summary.predicted)
        files.append(_write_json(out, COCO, coco_file(rows, model.class_names)))
    return files


def _write_json(out: Path, name: str, content: Mapping[str, Any]) -> Path:
    text = json.dumps(content, indent=1).encode("ascii")
    return write_file(out, name, lambda file: file.write(text))
