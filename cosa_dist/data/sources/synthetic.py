"""The generated data set as a source: each picture is drawn where and when it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import SourceRecord
from cosa_dist.data.synthetic.images import SYNTHETIC_CLASSES, SyntheticImage, generate_image


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
        picture = _drawn(self.split, self.index, self.seed, self.image_size)
        pixels = getattr(picture, self.part)
        return encode_jpeg(pixels) if self.part == "image" else encode_mask(pixels)

    def identity(self) -> str:
        """All that the picture depends on."""
        return repr(self)


@lru_cache(maxsize=1)
def _drawn(split: str, index: int, seed: int, image_size: int) -> SyntheticImage:
    """Draw a picture, remembered while its three parts are read."""
    return generate_image(split, index, seed, image_size)


def synthetic_info() -> DatasetInfo:
    """Return the entry of the generated data set."""
    return DatasetInfo("synthetic", SYNTHETIC_CLASSES)


def synthetic_records(split: str, count: int, *, seed: int, image_size: int) -> Iterator[SourceRecord]:
    """Yield `count` generated pictures as records: JPEG pictures, exact masks and context masks.

    Raises:
        DataError: the generator refuses the count, the seed or the size.
    """
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
