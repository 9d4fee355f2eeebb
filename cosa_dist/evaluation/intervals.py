"""Pixel counts of each evaluated image, and the interval that they give a score.

The evaluated images are a sample, and another one would have given another mIoU. The percentile bootstrap
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) tells how far: N of the N images
are drawn with replacement, the mIoU is read from the sum of their counts, and so on `RESAMPLES` times; the
interval holds the middle `LEVEL` of these scores. What another seed would have given is not in it.

A resample lacks a class of n images with a chance of about e^-n, and its mean is then over other classes than
the score's: with classes in one image that are never found, the whole interval lies above the score. So there
is none where a class of the masks is in fewer than `FEWEST_IMAGES` images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosa_dist.atomic import atomic_file

LEVEL = 0.95
LEVEL_TEXT = f"{LEVEL:.0%}".replace("%", " %")
RESAMPLES = 2000
SEED = 0
"""of the drawing: the same images give the same interval, and two runs the same resamples"""
FEWEST_IMAGES = 5
"""that each class of the masks is in: in simulations of many classes in five images, none of them found, the
resamples' mean is less than a tenth of the interval's width off the score, with four more than that
(tests/evaluation/test_intervals.py)"""
CHUNK = 100
"""resamples that are drawn and summed at a time"""
Interval = tuple[float, float]
Floats = NDArray[np.float64]
Counts = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixel counts of one network on N images for K classes (background first) and M measurements.

    Of the table `[N, (1 + 2 M) K]` only the Z entries above 0 are kept, as few classes occur in an image. An
    image's row has the true pixels of each class, then for each measurement the right and the predicted ones.
    """

    ids: tuple[str, ...]  # of the images, rising
    measurements: tuple[str, ...]
    classes: int  # K
    image: Counts  # [Z] place in `ids`, rising
    column: Counts  # [Z] place in the image's row
    pixels: Counts  # [Z]

    @classmethod
    def of_table(cls, ids: Sequence[str], measurements: Sequence[str], table: NDArray[Any]) -> ImageCounts:
        """The counts of images in any order, from their table `[N, 1 + 2 M, K]`."""
        rows = table.reshape(len(table), table.shape[1] * table.shape[2])
        image, column = rows.nonzero()
        numbers = (each.astype(np.uint32) for each in (image, column, rows[image, column]))
        return cls(tuple(ids), tuple(measurements), table.shape[2], *numbers)

    @classmethod
    def merged(cls, parts: Sequence[ImageCounts]) -> ImageCounts:
        """The counts of all ranks' images, in the order of their ids."""
        ids = [image_id for part in parts for image_id in part.ids]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        places = np.empty(len(ids), dtype=np.uint32)
        places[order] = np.arange(len(ids), dtype=np.uint32)
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        image = np.concatenate([places[p.image + start] for p, start in zip(parts, starts[:-1], strict=True)])
        column, pixels = (np.concatenate([getattr(part, n) for part in parts]) for n in ("column", "pixels"))
        by_image = np.argsort(image, kind="stable")
        numbers = (each[by_image] for each in (image, column, pixels))
        sorted_ids = tuple(ids[place] for place in order)
        return cls(sorted_ids, parts[0].measurements, parts[0].classes, *numbers)

    def table(self, measurement: str) -> NDArray[np.int64]:
        """True, right and predicted pixels of each image and class under one measurement, `[N, 3, K]`.

        Raises ValueError for a measurement that was not counted.
        """
        if measurement not in self.measurements:
            raise ValueError(f"{measurement} was not measured; there are {', '.join(self.measurements)}")
        table = np.zeros((len(self.ids), 3, self.classes), dtype=np.int64)
        place = 1 + 2 * self.measurements.index(measurement)
        block = self.column // self.classes
        for row, wanted in enumerate((0, place, place + 1)):
            chosen = block == wanted
            table[self.image[chosen], row, self.column[chosen] % self.classes] = self.pixels[chosen]
        return table

    @property
    def rare(self) -> tuple[int, ...]:
        """Classes in 0..K - 1 that are in some masks, but of fewer than `FEWEST_IMAGES` images."""
        return rare_classes(self.table(self.measurements[0])) if self.measurements else ()

    def save(self, path: Path) -> None:
        """Write the counts as a compressed NumPy archive, whole or not at all."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> ImageCounts:
        """Read what `save` wrote; ValueError for another file, FileNotFoundError if there is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, measurements = (tuple(map(str, file[name])) for name in ("ids", "measurements"))
                numbers = (np.asarray(file[name], np.uint32) for name in ("image", "column", "pixels"))
                counts = cls(ids, measurements, int(file["classes"]), *numbers)
            width = counts.classes * (1 + 2 * len(measurements))
            table = np.zeros((len(ids), width), dtype=bool)
            table[counts.image, counts.column] = counts.pixels > 0
            return counts
        except OSError:
            raise
        except Exception as error:  # NumPy's, zipfile's and zlib's, and what numbers that do not fit break
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path} is damaged ({reason}): put it back from a copy, or evaluate again"
            ) from None


def iou_of(sums: NDArray[np.int64] | Floats) -> Floats:
    """IoU `[..., K]` of true, right and predicted pixels `[..., 3, K]`, NaN as in `iou_per_class`."""
    true, right, predicted = (np.asarray(sums[..., row, :], np.float64) for row in range(3))
    with np.errstate(invalid="ignore"):
        return right / (true + predicted - right)


def miou_of(sums: NDArray[np.int64] | Floats) -> Floats:
    """The mIoU `[...]` of true, right and predicted pixels `[..., 3, K]`, as `mean_iou` has it.

    The mean is over the classes that occur in the truth; NaN where no foreground class does.
    """
    present = sums[..., 0, :] > 0
    total = np.where(present, iou_of(sums), 0.0).sum(-1)
    return np.where(present[..., 1:].any(-1), total / np.maximum(present.sum(-1), 1), np.nan)


def resampled(table: NDArray[np.int64]) -> Iterator[Floats]:
    """Sums over N images drawn with replacement, of counts `[N, 3, K]`: `RESAMPLES` in chunks `[R, 3, K]`.

    There are none of fewer than two images, which say nothing of others. The drawing depends on N only, so
    that the counts of several networks are of the same images. Sums of whole numbers are exact in float64, so
    results do not depend on the machine's arithmetic.
    """
    images, random = len(table), np.random.default_rng(SEED)
    flat = table.reshape(images, table[0].size if images else 0).astype(np.float64)
    for start in range(0, RESAMPLES if images > 1 else 0, CHUNK):
        draws = (random.integers(images, size=images) for _ in range(start, min(start + CHUNK, RESAMPLES)))
        weights = np.stack([np.bincount(draw, minlength=images) for draw in draws])
        yield (weights.astype(np.float64) @ flat).reshape(-1, *table.shape[1:])


def rare_classes(table: NDArray[np.int64]) -> tuple[int, ...]:
    """Classes that are in the masks of some images, but of fewer than `FEWEST_IMAGES`, by `[N, 3, K]`."""
    images = (table[:, 0] > 0).sum(0)
    return tuple(np.flatnonzero((images > 0) & (images < FEWEST_IMAGES)).tolist())


def interval_of(values: Floats) -> Interval | None:
    """The interval of a statistic's values over the resamples, `[R]`; those that are NaN are left out.

    None if none is left. Percentiles between two values are interpolated.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_text(interval: Interval | None, form: str = ".1f") -> str:
    """E.g. `41.0 to 45.3`; empty for None."""
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def miou_interval(counts: ImageCounts, measurement: str = "unfiltered") -> Interval | None:
    """The interval of a network's mIoU in per cent, see `interval_of`; None with a class in too few images.

    A class that no image of a resample has in its mask is not in that resample's mean, and a resample without
    any foreground class has no score.
    """
    table = counts.table(measurement)
    if rare_classes(table):
        return None
    chunks = [100.0 * miou_of(sums) for sums in resampled(table)]
    return interval_of(np.concatenate([[], *chunks]))


def too_few_images(classes: Sequence[str]) -> str:
    """Why there is no interval: the classes that are in too few images; empty without such classes."""
    return f"fewer than {FEWEST_IMAGES} images have {', '.join(classes)}" if classes else ""
