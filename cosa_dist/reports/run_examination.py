"""Looks at a trained network's validation images one by one: confusion of the classes, best and worst images.

The evaluation's reports hold sums only; this pass finds the images behind them. Masks are needed. The
prediction is `unfiltered`; an image's score is the mean IoU over the classes in its mask or its prediction
(ours; it ranks images and is no headline number).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.confusion import confusion_matrix, iou_per_class
from cosa_dist.inference.segmentation import Segmenting


@dataclass(frozen=True)
class JudgedImage:
    """One image with its score in per cent, its truth and its prediction."""

    id: str
    score: float
    image: Image.Image
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Examination:
    """What was found: `[K, K]` pixel counts (rows: true class), and the images at both ends, worst first."""

    images: int
    confusion: Tensor
    worst: tuple[JudgedImage, ...]
    best: tuple[JudgedImage, ...]


def examine(
    segmenting: Segmenting,
    samples: Iterable[EvalSample],
    classes: int,
    shown: int = 6,
    progress: Callable[[int], None] = lambda done: None,
) -> Examination:
    """Predict on the samples that have a mask.

    Args:
        segmenting: the network and how it sees.
        samples: images; those without a mask are left out.
        classes: K, the background included.
        shown: images kept at each end.
        progress: called with the number of judged images after every batch.
    """
    total = torch.zeros(classes, classes, dtype=torch.int64)
    ends: list[JudgedImage] = []
    best: list[JudgedImage] = []
    done = 0
    for batch in _batches((s for s in samples if s.mask is not None), segmenting.settings.batch_size):
        for sample, made in zip(batch, segmenting([sample.image for sample in batch]), strict=True):
            assert sample.mask is not None
            counts = confusion_matrix(torch.from_numpy(made.classes), sample.mask, classes)
            total += counts
            done += 1
            if not counts.any():  # all of the mask is ignored
                continue
            pixels = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
            judged = JudgedImage(sample.id, image_score(counts), pixels, sample.mask.numpy(), made.classes)
            ends = sorted([*ends, judged], key=lambda one: (one.score, one.id))[:shown]
            best = sorted([*best, judged], key=lambda one: (-one.score, one.id))[:shown]
        progress(done)
    seen = {one.id for one in ends}
    return Examination(done, total, tuple(ends), tuple(one for one in best if one.id not in seen))


def image_score(counts: Tensor) -> float:
    """Mean IoU in per cent over the classes in an image's mask or prediction, from its counts `[K, K]`."""
    return 100.0 * float(iou_per_class(counts).nanmean())


def row_shares(confusion: Tensor) -> list[list[float | None]]:
    """Per cent of each true class's pixels that go to each class; None in the row of a class without any."""
    counts = confusion.double()
    sums = counts.sum(1, keepdim=True)
    return [
        [None] * len(counts) if not float(total) else (100.0 * row / total).tolist()
        for row, total in zip(counts, sums, strict=True)
    ]


def _batches(samples: Iterable[EvalSample], size: int) -> Iterator[Sequence[EvalSample]]:
    rest = iter(samples)
    while batch := list(islice(rest, size)):
        yield batch
