"""From pictures of any size to the class of each pixel: what the evaluator does, without a truth.

Large pictures are done band by band, so that memory does not grow with classes x pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.evaluation.confusion import count_places
from cosa_dist.evaluation.protocols import (
    Protocol,
    chosen_planes,
    kept_classes,
    multi_scale_forward,
    resize_map,
    summed_views,
)
from cosa_dist.training.state import autocast

BAND_VALUES = 2**26  # most values (classes x pixels) enlarged at a time: 256 MiB of float32


@dataclass(frozen=True)
class Segmentation:
    """One picture's classes and how sure they are."""

    classes: NDArray[np.uint8]  # [H, W]: 0 background, 1..C
    confidence: dict[int, float]  # of each class that occurs: mean probability over its pixels
    probabilities: NDArray[np.float16] | None  # [C + 1, H, W], background first, if asked for


@dataclass(frozen=True)
class Segmenting:
    """A network with the settings by which it sees pictures."""

    network: nn.Module  # on `device`, in evaluation mode
    settings: EvaluationConfig  # what its protocol names is read
    device: torch.device
    _: KW_ONLY
    precision: str = "auto"  # number format of the network, `training.precision` of its run
    labels_from_classifier: bool = False  # protocol `predicted_labels` instead of `unfiltered`
    probabilities: bool = False  # whether each picture's probabilities are handed out
    band_values: int = BAND_VALUES

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Segmentation]:
        """Segment pictures `[3, H, W]` uint8, each of its own size."""
        originals = [image.to(self.device, non_blocking=True) for image in images]
        with autocast(self.precision, self.device):
            outputs = multi_scale_forward(self.network, originals, self.settings)
        passes = summed_views(self.settings)
        protocol: Protocol = "predicted_labels" if self.labels_from_classifier else "unfiltered"
        segmented = []
        for (output, index), image in zip(outputs, images, strict=True):
            logits = output.logits[index].float()
            kept = kept_classes(logits, torch.zeros_like(logits), protocol)
            mean = output.segmentation[index].float() / passes
            segmented.append(self._segment(mean, kept, (image.shape[-2], image.shape[-1])))
        return segmented

    def _segment(self, logits: Tensor, kept: Tensor, size: tuple[int, int]) -> Segmentation:
        """One picture's segmentation from its logits `[C + 1, h, w]`, averaged over the passes."""
        every = None if self.labels_from_classifier else len(logits)
        planes = chosen_planes(functional.pad(kept, (1, 0), value=True), every)
        classes = np.empty(size, dtype=np.uint8)
        probabilities = np.zeros((len(logits), *size), dtype=np.float16) if self.probabilities else None
        total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        count = torch.zeros_like(total)
        for rows, band in enlarged_bands(logits[planes], size, self.band_values):
            softmax = band.softmax(0)
            highest, place = softmax.max(0)
            found = planes[place]
            classes[rows] = found.to(torch.uint8).cpu().numpy()
            total.index_add_(0, found.flatten(), highest.flatten().double())
            count += count_places(found, len(count))
            if probabilities is not None:
                probabilities[planes.cpu().numpy(), rows] = softmax.half().cpu().numpy()
        sums, pixels = torch.stack([total, count]).tolist()
        confidence = {index: sums[index] / number for index, number in enumerate(pixels) if number}
        return Segmentation(classes, confidence, probabilities)


def enlarged_bands(maps: Tensor, size: tuple[int, int], most: int) -> Iterator[tuple[slice, Tensor]]:
    """Resize maps `[P, h, w]` to `size` (H, W), bilinear, and yield them band by band: (rows, `[P, n, W]`).

    Up to `most` values it is one band and exactly `resize_map`; otherwise the rows are mixed first and the
    columns then, which is the same but for rounding.
    """
    height, width = size
    rows = max(1, most // (len(maps) * width))
    if rows >= height:
        yield slice(0, height), resize_map(maps, size)
        return
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        target = torch.arange(start, stop, device=maps.device, dtype=torch.float64) + 0.5
        place = (target * maps.shape[-2] / height - 0.5).clamp(min=0)
        above = place.long()
        below = (above + 1).clamp(max=maps.shape[-2] - 1)
        fraction = (place - above).to(maps.dtype)[:, None]
        yield (
            slice(start, stop),
            resize_map(maps[:, above].lerp(maps[:, below], fraction), (stop - start, width)),
        )
