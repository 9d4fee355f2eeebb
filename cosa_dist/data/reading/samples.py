"""What a loader hands out: training batches and evaluation samples, and how one is made of records.

Making is a pure function of the records, their positions and the settings; how the records were read, in
which process and when is the loader's business. A record that cannot be decoded is named in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import RecordError
from cosa_dist.data.reading.views import (
    ViewDraw,
    draw_view,
    mask_view,
    strong_view,
    to_plane,
    to_tensor,
    weak_view,
)
from cosa_dist.data.shards.split import Record


@dataclass(frozen=True)
class Batch:
    """Training samples: two views of each image, its tags, and where the image lies in the crop."""

    ids: list[str]
    positions: Tensor  # [B] int64, position in the run's endless sample sequence
    weak: Tensor  # [B, 3, S, S] uint8
    strong: Tensor  # [B, 3, S, S] uint8
    labels: Tensor  # [B, C] float32 multi-hot
    boxes: Tensor  # [B, 4] int64 (top, bottom, left, right), half-open
    masks: Tensor | None = None  # [B, S, S] uint8 classes, 255 ignore; training on masks only
    reliability: Tensor | None = None  # [B, S, S] uint8, 0..255 for 0..1; pseudo-masks that have it

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (torch's loader calls this)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with each tensor changed."""
        return Batch(
            ids=self.ids,
            positions=change(self.positions),
            weak=change(self.weak),
            strong=change(self.strong),
            labels=change(self.labels),
            boxes=change(self.boxes),
            masks=None if self.masks is None else change(self.masks),
            reliability=None if self.reliability is None else change(self.reliability),
        )


@dataclass(frozen=True)
class EvalSample:
    """One image of its original size with what is known of it."""

    id: str
    image: Tensor  # [3, H, W] uint8
    mask: Tensor | None  # [H, W] uint8 (0 background, 1..C, 255 ignore)
    labels: Tensor  # [C] float32 multi-hot
    context: Tensor | None  # [H, W] uint8, 1 where the coexisting context is; generated data only


@dataclass(frozen=True)
class PlacedRecord:
    """A record at its place in the run's endless sample sequence."""

    position: int
    epoch: int
    record: Record


def training_batch(
    placed: Iterable[PlacedRecord],
    *,
    source: str,
    crop_size: int,
    scale_range: tuple[float, float],
    seed: int,
    masks: bool = False,
) -> Batch:
    """Return the batch of the given records; each image is decoded once for its two views.

    Without `masks`, they are not looked at. An image without tags gets a row of zeros.

    Args:
        placed: the records with their positions, which the random views depend on.
        source: where the records come from, for messages.
        crop_size: side S of the square crops.
        scale_range: smallest and largest random scale.
        seed: the run's seed.
        masks: whether each record's mask, and its reliability if stored, becomes part of the batch.

    Raises:
        RecordError: an image or a mask cannot be decoded, or a mask is missing.
    """
    ids, positions, weak_views, strong_views, labels, boxes = [], [], [], [], [], []
    planes: list[tuple[Tensor, Tensor | None]] = []
    numbers = partial(draw_view, seed=seed, crop_size=crop_size, scale_range=scale_range)
    for sample in placed:
        image = _decoded(source, sample.record)
        draw = numbers(epoch=sample.epoch, position=sample.position, size=image.size)
        weak, box = weak_view(image, draw, crop_size)
        ids.append(sample.record.id)
        positions.append(sample.position)
        weak_views.append(to_tensor(weak))
        strong_views.append(to_tensor(strong_view(weak, draw.operation, draw.magnitude)))
        labels.append(torch.from_numpy(sample.record.labels))
        boxes.append(box)
        if masks:
            planes.append(_supervision(source, sample.record, image.size, draw, crop_size))
    return Batch(
        ids=ids,
        positions=torch.tensor(positions, dtype=torch.int64),
        weak=torch.stack(weak_views),
        strong=torch.stack(strong_views),
        labels=torch.stack(labels),
        boxes=torch.tensor(boxes, dtype=torch.int64),
        masks=_stacked([mask for mask, _ in planes]),
        reliability=_stacked([reliability for _, reliability in planes]),
    )


def evaluation_sample(record: Record, *, source: str) -> EvalSample:
    """Return a record as an evaluation sample; `source` says in messages where it comes from.

    Raises:
        RecordError: image or mask cannot be decoded, or they differ in size.
    """
    image = _decoded(source, record)
    size = (image.height, image.width)
    return EvalSample(
        id=record.id,
        image=to_tensor(image),
        mask=_tensor(_decoded_mask(source, record, record.mask, size)),
        labels=torch.from_numpy(record.labels),
        context=_tensor(_decoded_mask(source, record, record.context, size)),
    )


def _supervision(
    source: str, record: Record, size: tuple[int, int], draw: ViewDraw, crop_size: int
) -> tuple[Tensor, Tensor | None]:
    """A record's mask and, if stored, its reliability, in the geometry of the views (`[S, S]` each)."""
    shape = (size[1], size[0])
    mask = _decoded_mask(source, record, record.mask, shape)
    if mask is None:
        raise _named(source, record, "it has no mask to train on")
    view = to_plane(mask_view(Image.fromarray(mask), draw, crop_size, IGNORE))
    reliability = _decoded_mask(source, record, record.reliability, shape)
    if reliability is None:
        return view, None
    return view, to_plane(mask_view(Image.fromarray(reliability), draw, crop_size, 0))


def _stacked(planes: Sequence[Tensor | None]) -> Tensor | None:
    """`[B, S, S]` if every sample has the plane."""
    found = [plane for plane in planes if plane is not None]
    return torch.stack(found) if found and len(found) == len(planes) else None


def _decoded(source: str, record: Record) -> Image.Image:
    """Decode a record's image; the error names the record."""
    try:
        return decode_image(record.image)
    except RecordError as error:
        raise _named(source, record, str(error)) from error


def _decoded_mask(
    source: str, record: Record, data: bytes | None, size: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """Decode a mask `[H, W]` of the image's size (H, W); the error names the record."""
    if data is None:
        return None
    try:
        mask = decode_mask(data)
    except RecordError as error:
        raise _named(source, record, str(error)) from error
    if mask.shape != size:
        raise _named(source, record, f"mask {list(mask.shape)} and image {list(size)} differ in size")
    return mask


def _tensor(mask: NDArray[np.uint8] | None) -> Tensor | None:
    return None if mask is None else torch.from_numpy(mask)


def _named(source: str, record: Record, reason: str) -> RecordError:
    """Return an error that says which record of which split it is about."""
    return RecordError(f"record '{record.id}' of {source}: {reason}")
