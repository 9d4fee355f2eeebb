"""Small sources made of drawn pictures: a VOC devkit and a COCO mask folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import encode_jpeg, encode_mask
from cosa_dist.data.ingest.ingest import IngestOptions, ingest
from cosa_dist.data.sources.record import SourceRecord

PALETTE = [value for index in range(256) for value in (index, 255 - index, 7)]


def draw_photo(number: int, width: int, height: int) -> np.ndarray:
    """A smooth picture that differs from number to number, so that JPEG keeps it apart."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + number % 5) + number + c) + np.cos(y / 4 + c) for c in range(3)]
    return np.stack([60 * wave + 127 for wave in waves], axis=-1).astype(np.uint8)


def write_pair(image: Path, mask: Path, number: int, values: tuple[int, ...], palette: bool) -> None:
    """Write a photo and a mask whose vertical stripes have the given values."""
    width, height = 40 + number, 30
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_photo(number, width, height)).save(image, quality=90)
    ids = np.zeros((height, width), dtype=np.uint8)
    for place, value in enumerate(values):
        ids[:, 5 * place : 5 * place + 5] = value
    picture = Image.fromarray(ids)
    if palette:
        picture.putpalette(PALETTE)
        assert picture.mode == "P"
    picture.save(mask)


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """A devkit with six training and two validation records; every second mask has a palette."""
    home = tmp_path / "VOCdevkit" / "VOC2012"
    ids = [f"2007_{number:06d}" for number in range(8)]
    for number, name in enumerate(ids):
        values = (number + 1, 20, 255)
        mask = home / "SegmentationClass" / f"{name}.png"
        write_pair(home / "JPEGImages" / f"{name}.jpg", mask, number, values, number % 2 == 0)
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids[:6]) + "\n")
    (lists / "val.txt").write_text("\n".join(ids[6:]) + "\n")
    return home


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """COCO in the layout of WSSS repositories: three training records and one validation record."""
    home = tmp_path / "coco"
    for number in range(4):
        folder = "train2014" if number < 3 else "val2014"
        name = f"COCO_{folder}_{number:012d}"
        image, mask = home / folder / f"{name}.jpg", home / "SegmentationClass" / folder / f"{name}.png"
        write_pair(image, mask, number, (80 - number,), True)
        with (home / f"{folder[:-4]}.txt").open("a") as listing:
            listing.write(f"{name}\n")
    return home


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Maker of a shard folder `drawn` with classes a, b, c and as many training records as asked."""

    def make(count: int, *, context: bool = False, **options: object) -> Path:
        def records(first: int, number: int) -> list[SourceRecord]:
            made = []
            for index in range(first, first + number):
                ids = np.zeros((30 + index, 44), dtype=np.uint8)
                if index:
                    ids[:, :9] = index % 3 + 1
                photo = encode_jpeg(draw_photo(index, 44, 30 + index))
                extra = encode_mask((ids > 1).astype(np.uint8)) if context else None
                made.append(SourceRecord(f"drawn_{index:03d}", photo, encode_mask(ids), context=extra))
            return made

        out = tmp_path / "shards"
        info = DatasetInfo("drawn", ("a", "b", "c"))
        sources = {"train": records(0, count), "val": records(count, 5)}
        ingest(sources, info, out, IngestOptions(**options))  # type: ignore[arg-type]
        return out

    return make
