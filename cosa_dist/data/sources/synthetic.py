"""The generated data set as a source: each picture is drawn where and when it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import SourceRecord
from cosa_dist.data.synthetic.images import SYNTHETIC_CLASSES, generate_image

_generate = lru_cache(maxsize=1)(generate_image)
"""Remembers a picture while its three parts are read."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One of a generated picture's three parts: `image`, `mask` or `context_mask`."""

    split: str
    index: int
    seed: int
    image_size: int
    part: str

    @property
    def where(self) -> str:
        """Number and split."""
        return f"generated picture {self.index} of {self.split}"

    def read(self) -> bytes:
        """Return the picture as a JPEG, a mask as a PNG."""
        pixels = getattr(_generate(self.split, self.index, self.seed, self.image_size), self.part)
        return encode_jpeg(pixels) if self.part == "image" else encode_mask(pixels)

    def identity(self) -> str:
        """Return all that the picture depends on."""
        return repr(self)


def synthetic_info() -> DatasetInfo:
    """Return the entry of the generated data set."""
    return DatasetInfo("synthetic", SYNTHETIC_CLASSES)


def synthetic_records(split: str, count: int, *, seed: int, image_size: int) -> Iterator[SourceRecord]:
    """Yield generated pictures; raises `DataError` if the generator refuses count, seed or size."""
    if count < 0:
        raise DataError(f"generated split '{split}': count is {count}; it must not be negative")
    try:
        generate_image(split, 0, seed, image_size)
    except ValueError as error:
        raise DataError(f"generated split '{split}': {error}") from error
    for index in range(count):
        image, mask, context = (
            Drawn(split, index, seed, image_size, part) for part in ("image", "mask", "context_mask")
        )
        yield SourceRecord(f"{split}_{index:06d}", image, mask, context=context)
