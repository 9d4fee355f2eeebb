"""What a loader hands out: training batches and evaluation samples, made of records by pure functions.

A record that cannot be decoded is named in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import RecordError
from cosa_dist.data.reading.views import Pixels, draw_view, mask_view, strong_view, to_tensor, weak_view

if TYPE_CHECKING:  # the shards' reader needs Hugging Face datasets, what works on batches does not
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
    most_tags: int = 0  # largest number of tags of an image, at least 1; 0: not counted

    def __post_init__(self) -> None:
        # Counted before the batch leaves the CPU: a number that a GPU has counted makes the host wait.
        if not self.most_tags and self.labels.device.type == "cpu" and len(self.labels):
            object.__setattr__(self, "most_tags", max(1, int((self.labels > 0.5).sum(1).max())))

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (torch's loader calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = [getattr(self, field.name) for field in fields(self)]
        changed: list[Any] = [change(value) if isinstance(value, Tensor) else value for value in values]
        return Batch(*changed)


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


@dataclass(frozen=True)
class ViewSettings:
    """How records become training samples."""

    seed: int
    crop_size: int
    scale_range: tuple[float, float]
    masks: bool = False  # each record's mask, and its reliability if stored, becomes part of the batch


def training_batch(placed: Iterable[PlacedRecord], settings: ViewSettings, source: str) -> Batch:
    """Return the batch of records; a RecordError names the one of `source` that cannot be decoded."""
    samples = list(placed)
    weak, strong = np.empty((2, len(samples), 3, settings.crop_size, settings.crop_size), np.uint8)
    rows = [_views(*each, settings, source) for each in zip(samples, weak, strong, strict=True)]
    ids, positions, labels, boxes, mask_views, reliability = zip(*rows, strict=True)
    return Batch(
        ids=list(ids),
        positions=torch.tensor(positions, dtype=torch.int64),
        weak=torch.from_numpy(weak),
        strong=torch.from_numpy(strong),
        labels=torch.stack(labels),
        boxes=torch.tensor(boxes, dtype=torch.int64),
        masks=_stack_if_all(mask_views),
        reliability=_stack_if_all(reliability),
    )


def evaluation_sample(record: Record, source: str) -> EvalSample:
    """Return a record of `source` as an evaluation sample; RecordError if it cannot be decoded."""
    with _naming(record, source):
        image = decode_image(record.image)
        return EvalSample(
            id=record.id,
            image=to_tensor(image),
            mask=_mask(record.mask, image),
            labels=torch.from_numpy(record.labels),
            context=_mask(record.context, image),
        )


def _views(
    sample: PlacedRecord, weak: Pixels, strong: Pixels, settings: ViewSettings, source: str
) -> tuple[Any, ...]:
    """Fill in one sample's views, both from one decode; return its other values in a batch's order."""
    record, side = sample.record, settings.crop_size
    with _naming(record, source):
        image = decode_image(record.image)
        draw = draw_view(
            seed=settings.seed,
            epoch=sample.epoch,
            position=sample.position,
            size=image.size,
            crop_size=side,
            scale_range=settings.scale_range,
        )
        _, box = weak_view(image, draw, side, weak)
        strong_view(weak, draw.operation, draw.magnitude, strong)
        mask = reliability = None
        if settings.masks:
            stored, trust = _mask(record.mask, image), _mask(record.reliability, image)
            if stored is None:
                raise RecordError("it has no mask to train on")
            mask = mask_view(stored, draw, side, IGNORE)
            reliability = None if trust is None else mask_view(trust, draw, side, 0)
    return record.id, sample.position, torch.from_numpy(record.labels), box, mask, reliability


def _stack_if_all(planes: Sequence[Tensor | None]) -> Tensor | None:
    """`[B, S, S]` if every sample has the plane."""
    found = [plane for plane in planes if plane is not None]
    return torch.stack(found) if len(found) == len(planes) else None


def _mask(data: bytes | None, image: Image.Image) -> Tensor | None:
    """Decode a mask `[H, W]` uint8 of the image's size."""
    if data is None:
        return None
    mask, size = decode_mask(data), (image.height, image.width)
    if mask.shape != size:
        raise RecordError(f"mask {list(mask.shape)} and image {list(size)} differ in size")
    return torch.from_numpy(mask)


@contextmanager
def _naming(record: Record, source: str) -> Iterator[None]:
    """Let errors say which record of which split they are about."""
    try:
        yield
    except RecordError as error:
        raise RecordError(f"record '{record.id}' of {source}: {error}") from error
