"""What a loader hands out: training batches and evaluation samples, and how one is made of records.

Making is a pure function of the records, their positions and the settings; how the records were read, in
which process and when is the loader's business. A record that cannot be decoded is named in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import RecordError
from cosa_dist.data.shards import Record
from cosa_dist.data.views import draw_view, strong_view, to_tensor, weak_view


@dataclass(frozen=True)
class Batch:
    """Training samples: two views of each image, its tags, and where the image lies in the crop."""

    ids: list[str]
    positions: Tensor  # [B] int64, position in the run's endless sample sequence
    weak: Tensor  # [B, 3, S, S] uint8
    strong: Tensor  # [B, 3, S, S] uint8
    labels: Tensor  # [B, C] float32 multi-hot
    boxes: Tensor  # [B, 4] int64 (top, bottom, left, right), half-open

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
) -> Batch:
    """Return the batch of the given records; each image is decoded once for its two views.

    Masks are not looked at. An image without tags gets a row of zeros.

    Args:
        placed: the records with their positions, which the random views depend on.
        source: where the records come from, for messages.
        crop_size: side S of the square crops.
        scale_range: smallest and largest random scale.
        seed: the run's seed.

    Raises:
        RecordError: an image cannot be decoded.
    """
    ids, positions, weak_views, strong_views, labels, boxes = [], [], [], [], [], []
    for sample in placed:
        image = _decoded(source, sample.record)
        draw = draw_view(
            seed=seed,
            epoch=sample.epoch,
            position=sample.position,
            size=image.size,
            crop_size=crop_size,
            scale_range=scale_range,
        )
        weak, box = weak_view(image, draw, crop_size)
        ids.append(sample.record.id)
        positions.append(sample.position)
        weak_views.append(to_tensor(weak))
        strong_views.append(to_tensor(strong_view(weak, draw.operation, draw.magnitude)))
        labels.append(torch.from_numpy(sample.record.labels))
        boxes.append(box)
    return Batch(
        ids=ids,
        positions=torch.tensor(positions, dtype=torch.int64),
        weak=torch.stack(weak_views),
        strong=torch.stack(strong_views),
        labels=torch.stack(labels),
        boxes=torch.tensor(boxes, dtype=torch.int64),
    )


def evaluation_sample(record: Record, *, source: str) -> EvalSample:
    """Return a record as an evaluation sample; `source` says in messages where it comes from.

    Raises:
        RecordError: image or mask cannot be decoded, or they differ in size.
    """
    image = to_tensor(_decoded(source, record))
    return EvalSample(
        id=record.id,
        image=image,
        mask=_decoded_mask(source, record, record.mask, image),
        labels=torch.from_numpy(record.labels),
        context=_decoded_mask(source, record, record.context, image),
    )


def _decoded(source: str, record: Record) -> Image.Image:
    """Decode a record's image; the error names the record."""
    try:
        return decode_image(record.image)
    except RecordError as error:
        raise _named(source, record, str(error)) from error


def _decoded_mask(source: str, record: Record, data: bytes | None, image: Tensor) -> Tensor | None:
    """Decode a mask `[H, W]` of the image's size; the error names the record."""
    if data is None:
        return None
    try:
        mask = torch.from_numpy(decode_mask(data))
    except RecordError as error:
        raise _named(source, record, str(error)) from error
    if mask.shape != image.shape[1:]:
        sizes = f"mask {list(mask.shape)} and image {list(image.shape[1:])} differ in size"
        raise _named(source, record, sizes)
    return mask


def _named(source: str, record: Record, reason: str) -> RecordError:
    """Return an error that says which record of which split it is about."""
    return RecordError(f"record '{record.id}' of {source}: {reason}")
