"""A trained network's images one by one: where it errs, and how its checkpoints saw a few of them.

The evaluation's reports hold sums only, and training draws pictures at its last evaluation only; these passes
find the images behind the sums, and what the kept checkpoints (the newest `training.keep_checkpoints` and the
best one) make of the same images. Predictions are `unfiltered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cosa_dist.config.schema import EvaluationConfig, RunConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.confusion import confusion_matrix, iou_per_class
from cosa_dist.evaluation.evaluator import has_cams
from cosa_dist.evaluation.protocols import (
    multi_scale_forward,
    resize_map,
    strongest_activation,
)
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.training.checkpoint import load_networks
from cosa_dist.training.checkpoint_files import PREFIX, CheckpointError, checkpoints
from cosa_dist.training.state import autocast

HEAT_OPACITY = 0.6


@dataclass(frozen=True)
class ScoredImage:
    """One image with its truth and its prediction.

    `score` is the mean IoU in per cent over the classes in its mask or its prediction; it ranks images and is
    no headline number.
    """

    id: str
    score: float
    image: Image.Image
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class ErrorAnalysis:
    """Pixel counts `[K, K]` (rows: true class) of images, and those with the lowest and highest scores."""

    images: int
    confusion: Tensor
    worst: tuple[ScoredImage, ...]
    best: tuple[ScoredImage, ...]


@dataclass(frozen=True)
class CheckpointSnapshot:
    """One image as the networks of one step see it."""

    step: int
    cam: Image.Image | None
    """strongest activation over the image's tags, as heat over the image; None: the network has no CAMs"""
    prediction: NDArray[np.uint8]
    """`[H, W]` classes"""


@dataclass(frozen=True)
class FollowedImage:
    """One image and its snapshots, oldest first."""

    id: str
    tags: tuple[str, ...]
    image: Image.Image
    snapshots: tuple[CheckpointSnapshot, ...]


@dataclass(frozen=True)
class Evolution:
    """The followed images, and the checkpoints that could not be read."""

    images: tuple[FollowedImage, ...]
    unreadable: tuple[str, ...] = ()
    network: str = "online"
    """whose predictions they are"""


def analyse_errors(
    segmenting: Segmenting,
    samples: Iterable[EvalSample],
    classes: int,
    shown: int = 6,
    progress: Callable[[int], None] = lambda done: None,
) -> ErrorAnalysis:
    """Predict on the samples that have a mask and keep the `shown` worst and best of them.

    `classes` includes the background; `progress` hears the number of images after every batch.
    """
    total = torch.zeros(classes, classes, dtype=torch.int64)
    worst: list[ScoredImage] = []
    best: list[ScoredImage] = []
    done = 0
    masked = ((sample, sample.mask) for sample in samples if sample.mask is not None)
    while batch := list(islice(masked, segmenting.settings.batch_size)):
        predictions = segmenting([sample.image for sample, _ in batch])
        for (sample, mask), made in zip(batch, predictions, strict=True):
            counts = confusion_matrix(torch.from_numpy(made.classes), mask, classes)
            total += counts
            if counts.any():  # else all of the mask is ignored
                score = image_score(counts)
                scored = ScoredImage(sample.id, score, _pixels(sample), mask.numpy(), made.classes)
                worst = sorted([*worst, scored], key=lambda one: (one.score, one.id))[:shown]
                best = sorted([*best, scored], key=lambda one: (-one.score, one.id))[:shown]
        done += len(batch)
        progress(done)
    ids = {one.id for one in worst}
    return ErrorAnalysis(done, total, tuple(worst), tuple(one for one in best if one.id not in ids))


def image_score(counts: Tensor) -> float:
    """Mean IoU in per cent over the classes in an image's mask or prediction, from its counts `[K, K]`."""
    return 100.0 * float(iou_per_class(counts).nanmean())


def predict_per_checkpoint(
    run: Path,
    samples: Sequence[EvalSample],
    class_names: Sequence[str],
    device: torch.device,
    network: str = "online",
) -> Evolution:
    """See the samples with the networks of each kept checkpoint of a run folder, one checkpoint at a time.

    Masks are not needed; `network` predicts, the assignment network draws the CAMs. Raises ValueError if no
    checkpoint can be read, or there are no samples.
    """
    snapshots: list[list[CheckpointSnapshot]] = [[] for _ in samples]
    unreadable = []
    for path in checkpoints(run / "checkpoints"):
        step = int(path.name.removeprefix(PREFIX))
        try:
            config, networks = load_networks(run, str(step), device)
        except CheckpointError as error:
            unreadable.append(str(error))
            continue
        _, average = networks.values()
        with autocast(config.training.precision, device):
            for sample, seen in zip(samples, snapshots, strict=True):
                seen.append(_snapshot(step, networks[network], average, sample, config, device))
    if not samples or not snapshots[0]:
        raise ValueError("; ".join(unreadable) or f"{run} has no checkpoint, or its split has no image")
    images = [
        FollowedImage(sample.id, _tags(sample, class_names), _pixels(sample), tuple(seen))
        for sample, seen in zip(samples, snapshots, strict=True)
    ]
    return Evolution(tuple(images), tuple(unreadable), network)


@torch.inference_mode()
def _snapshot(
    step: int,
    predicting: nn.Module,
    average: nn.Module,
    sample: EvalSample,
    config: RunConfig,
    device: torch.device,
) -> CheckpointSnapshot:
    settings, training = config.evaluation, config.assignment
    size = (sample.image.shape[-2], sample.image.shape[-1])
    labels = sample.labels[None].to(device)
    image = sample.image.to(device)
    ((output, _),) = multi_scale_forward(predicting, [image], settings, labels)
    prediction = resize_map(output.segmentation[0], size).argmax(0)
    cam = None
    if has_cams(average):
        # As in training, where the CAMs become pseudo-labels.
        in_training = EvaluationConfig(size=settings.size, scales=training.scales, flip=training.flip)
        maps = multi_scale_forward(average, [image], in_training, labels)[0][0].cam[0]
        cam = heat_over(_pixels(sample), strongest_activation(maps, labels[0] > 0.5, size)[0])
    return CheckpointSnapshot(step, cam, prediction.to(torch.uint8).cpu().numpy())


def heat_over(image: Image.Image, values: Tensor) -> Image.Image:
    """Lay values `[H, W]` in 0..1 as heat (the colours of the run's pictures) over an RGB image."""
    colours = colormaps["turbo"](values.clamp(0, 1).cpu().numpy())[..., :3]
    heat = Image.fromarray((colours * 255).round().astype(np.uint8))
    return Image.blend(image, heat, HEAT_OPACITY)


def _pixels(sample: EvalSample) -> Image.Image:
    return Image.fromarray(sample.image.permute(1, 2, 0).numpy())


def _tags(sample: EvalSample, class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, on in zip(class_names, sample.labels.tolist(), strict=True) if on > 0.5)
