"""One worker of a prediction: holds the network and turns batches of pictures into files.

The same object works in this process or as a Ray actor. A picture that cannot be read is skipped and the
others of its batch go on; a disk that cannot be written to ends the prediction.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.inference.coco_rle import annotations_of
from cosa_dist.inference.pictures import Picture, Skipped
from cosa_dist.inference.reading import ReadPicture, read_picture
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.inference.trained import TrainedModel, load_trained
from cosa_dist.inference.writing import MASKS, PROBABILITIES, RLE, write_outputs

MOST_PROBABILITIES = 2**28
"""Most values (classes x pixels) of one picture's probabilities: 512 MiB of float16."""
READERS = 2


@dataclass(frozen=True)
class PredictionTask:
    """What all workers of a prediction need, as plain values that travel to other nodes."""

    model: str
    """run folder or exported folder"""
    out: str
    """output folder, absolute"""
    checkpoint: str = ""
    """see `load_trained`"""
    network: str = ""
    """see `load_trained`"""
    outputs: tuple[str, ...] = (MASKS,)
    """some of `writing.OUTPUTS`"""
    scales: tuple[float, ...] = ()
    """of the multi-scale pass; empty: the run's"""
    flip: bool | None = None
    """whether each scale is also seen mirrored; None: as in the run"""
    size: int = 0
    """side of the square that the network sees; 0: the run's"""
    batch_size: int = 0
    """pictures of one pass; 0: the run's"""
    labels_from_classifier: bool = False
    """protocol `predicted_labels` instead of `unfiltered`"""
    device: str = "cpu"
    threads: int = 0
    """of torch; 0: its own choice"""


@dataclass(frozen=True)
class Predicted:
    """A picture that is done: its size, each class's share of its pixels, and perhaps its annotations."""

    name: str
    where: str
    width: int
    height: int
    shares: dict[str, float]
    annotations: list[dict[str, Any]] = field(default_factory=list)


def prediction_settings(model: TrainedModel, task: PredictionTask) -> EvaluationConfig:
    """The run's evaluation settings with the task's changes."""
    settings = model.config.evaluation
    changes: dict[str, Any] = {
        "scales": task.scales or settings.scales,
        "flip": settings.flip if task.flip is None else task.flip,
        "size": task.size or settings.size,
        "batch_size": task.batch_size or settings.batch_size,
    }
    return settings.model_copy(update=changes)


class PredictionWorker:
    """Holds a network and predicts batch after batch."""

    def __init__(self, task: PredictionTask) -> None:
        """Load the network; raises what `load_trained` raises."""
        # PIL warns of oddities (transparent palettes, strange EXIF) that its result does not suffer from.
        warnings.filterwarnings("ignore", module="PIL")
        if task.threads:
            torch.set_num_threads(task.threads)
        self.task = task
        device = torch.device(task.device)
        self.model = load_trained(Path(task.model), task.checkpoint, task.network, device)
        self.settings = prediction_settings(self.model, task)
        self.segmenting = Segmenting(
            self.model.network,
            self.settings,
            device,
            precision=self.model.config.training.precision,
            labels_from_classifier=task.labels_from_classifier,
            probabilities=PROBABILITIES in task.outputs,
        )

    def predict(self, pictures: Sequence[Picture]) -> list[Predicted | Skipped]:
        """Predict on a batch and write its files; the outcomes come in the pictures' order.

        Raises:
            WriteError: the output folder cannot be written to.
        """
        with ThreadPoolExecutor(READERS) as pool:
            read = [
                self._admitted(p, r) for p, r in zip(pictures, pool.map(read_picture, pictures), strict=True)
            ]
        images = [one.pixels for one in read if isinstance(one, ReadPicture)]
        made = iter(self.segmenting(images) if images else [])
        outcomes: list[Predicted | Skipped] = []
        for picture, one in zip(pictures, read, strict=True):
            if isinstance(one, Skipped):
                outcomes.append(one)
                continue
            found = next(made)
            pixels = one.pixels.permute(1, 2, 0).numpy()
            out, names = Path(self.task.out), self.model.class_names
            write_outputs(out, picture.name, pixels, found, names, self.task.outputs, one.orientation)
            height, width = found.classes.shape
            labelled = torch.from_numpy(found.classes).flatten().bincount(minlength=len(names) + 1)
            shares = {
                name: count / (height * width)
                for name, count in zip(("background", *names), labelled.tolist(), strict=True)
                if count
            }
            annotations = annotations_of(found) if RLE in self.task.outputs else []
            outcomes.append(Predicted(picture.name, picture.where, width, height, shares, annotations))
        return outcomes

    def _admitted(self, picture: Picture, read: ReadPicture | Skipped) -> ReadPicture | Skipped:
        """The picture, unless its probabilities would not fit into memory."""
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
