"""A small generated world for weakly supervised segmentation: images, masks and tags.

One to three textured objects of a few kinds lie on textured grounds, hide each other in part and are lit
unevenly. Each kind has a telling part and a rest it shares with others, so class activation maps cover
objects only partly; and one kind, the train, nearly always stands on rails that are rare elsewhere, so its
maps leak onto them (the coexistence problem). Image `index` is a pure function of (seed, split, index).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray

from cosa_dist.data.synthetic.drawing import GROUNDS, KINDS, Field, Region, draw, light, noise, rails

SYNTHETIC_CLASSES: tuple[str, ...] = tuple(KINDS)
"""Foreground class names; class `i` of the masks is `SYNTHETIC_CLASSES[i - 1]`."""
COEXISTENCE_CLASS = "train"
COEXISTENCE_RATE = 0.95
"""Fraction of the images with a train that show rails."""
STRAY_RAILS_RATE = 0.08
"""Fraction of the images without a train that show rails."""
SMALLEST_SIZE = 32

_OBJECT_COUNT_ODDS = (0.4, 0.4, 0.2)
_DIAMETERS = (0.28, 0.8)
_SMALL_DIAMETERS = (0.08, 0.25)
_SMALLEST_PIXELS = 8  # of a diameter
_SMALL_ODDS = 0.12
_VISIBLE_FRACTION = 0.55
_VISIBLE_PIXELS = 12
_PLACEMENTS = 8


@dataclass(frozen=True)
class SyntheticImage:
    """One generated image with everything that is known of it."""

    id: str
    image: NDArray[np.uint8]  # [H, W, 3]
    mask: NDArray[np.uint8]  # [H, W], 0 background, 1..C
    context_mask: NDArray[np.uint8]  # [H, W], 1 where rails are visible


@dataclass(frozen=True)
class _Placement:
    name: str
    diameter: float  # fractions of the image's side, as x and y
    x: float
    y: float
    angle: float

    @classmethod
    def draw(cls, name: str, size: int, rng: Generator) -> _Placement:
        low, high = _SMALL_DIAMETERS if rng.random() < _SMALL_ODDS else _DIAMETERS
        low = max(low, _SMALLEST_PIXELS / size)
        placement = cls(name, float(low * (high / low) ** rng.random()), 0.0, 0.0, 0.0).moved(rng)
        if name == COEXISTENCE_CLASS:  # the track below it stays in the image
            placement = replace(placement, y=min(placement.y, 0.95 - 0.4 * placement.diameter))
        return replace(placement, angle=float(rng.uniform(-KINDS[name].turn, KINDS[name].turn)))

    def moved(self, rng: Generator) -> _Placement:
        margin = 0.35 * self.diameter
        x, y = rng.uniform(margin, 1.0 - margin, size=2)
        return replace(self, x=float(x), y=float(y))


class _Canvas:
    """The image while it is painted from back to front."""

    def __init__(self, ground: Field) -> None:
        self.image = ground
        self.size = ground.shape[0]
        self.owner = np.zeros(ground.shape[:2], dtype=np.int64)  # 0, or 1-based object number
        self.classes = [0]
        self.areas = [0]

    def add(self, place: _Placement, rng: Generator) -> None:
        """Paint an object where it was placed, or elsewhere, or not at all, if it hides too much."""
        for _ in range(_PLACEMENTS):
            if self._fits(place, rng):
                return
            place = place.moved(rng)

    def _fits(self, place: _Placement, rng: Generator) -> bool:
        """Paint an object unless it would hide too much of an earlier one."""
        rows, columns, u, v = self._window(place)
        silhouette, colours = draw(place.name, u, v, rng)
        owner, number = self.owner[rows, columns], len(self.classes)
        hidden = np.bincount(owner[silhouette], minlength=number)
        visible = np.bincount(self.owner.ravel(), minlength=number) - hidden
        needed = np.maximum(_VISIBLE_PIXELS, _VISIBLE_FRACTION * np.array(self.areas))
        area = int(silhouette.sum())
        if (visible < needed)[1:].any() or area < _VISIBLE_PIXELS:
            return False
        owner[silhouette] = number
        self.image[rows, columns][silhouette] = colours[silhouette]
        self.classes.append(SYNTHETIC_CLASSES.index(place.name) + 1)
        self.areas.append(area)
        return True

    def _window(self, place: _Placement) -> tuple[slice, slice, Field, Field]:
        """Rows and columns around an object, and its local coordinates there."""
        radius = 0.5 * place.diameter * self.size
        x, y = place.x * self.size, place.y * self.size
        reach = 1.05 * radius * math.sqrt(2.0)
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        bottom, right = min(self.size, int(y + reach) + 1), min(self.size, int(x + reach) + 1)
        across = ((np.arange(left, right, dtype=np.float32) + 0.5 - x) / radius)[None, :]
        down = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / radius)[:, None]
        cosine, sine = math.cos(place.angle), math.sin(place.angle)
        u, v = cosine * across + sine * down, cosine * down - sine * across
        return slice(top, bottom), slice(left, right), u, v


def _choose_names(rng: Generator) -> list[str]:
    count = 1 + int(rng.choice(len(_OBJECT_COUNT_ODDS), p=_OBJECT_COUNT_ODDS))
    names = [SYNTHETIC_CLASSES[i] for i in rng.integers(0, len(SYNTHETIC_CLASSES), size=count)]
    # One train at most: there is one track.
    return [n for i, n in enumerate(names) if n != COEXISTENCE_CLASS or n not in names[:i]]


def _lay_rails(image: Field, train: _Placement | None, rng: Generator) -> Region:
    """Draw the track, if there is one, onto the ground; return where it lies `[H, W]`."""
    if rng.random() >= (STRAY_RAILS_RATE if train is None else COEXISTENCE_RATE):
        return np.zeros(image.shape[:2], dtype=np.bool_)
    if train is None:
        centre, width, tilt = rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.26), rng.uniform(-0.1, 0.1)
    else:
        # The train's lower edge stands on the upper half of the track.
        width, tilt = max(0.1, 0.26 * train.diameter), train.angle
        below = 0.22 * train.diameter + 0.25 * width
        centre = train.y + below / math.cos(tilt) + (0.5 - train.x) * math.tan(tilt)
    track, region = rails(rng, image.shape[0], float(centre), float(width), float(tilt))
    image[region] = track[region]
    return region


def _strew_stones(image: Field, rng: Generator) -> None:
    """Strew a few untagged grey stones, so that not every blob is an object."""
    size = image.shape[0]
    position = np.arange(size, dtype=np.float32) / size
    grain = noise(rng, size, size, 24)
    for _ in range(int(rng.integers(0, 4))):
        a, b = rng.uniform(0.03, 0.1), rng.uniform(0.03, 0.1)
        across = ((position - rng.random()) / a) ** 2
        down = ((position - rng.random()) / b) ** 2
        stone = down[:, None] + across[None, :] < 1.0
        image[stone] = (rng.uniform(0.3, 0.6) + 0.3 * (grain[stone] - 0.5))[:, None]


def generate_image(split: str, index: int, seed: int, image_size: int) -> SyntheticImage:
    """Draw image number `index`, from 0, of a split; every split and seed is a world of its own.

    Raises `ValueError` if the size is below 32, or the index or the seed negative.
    """
    if image_size < SMALLEST_SIZE:
        raise ValueError(f"image_size is {image_size}; generated pictures need {SMALLEST_SIZE} or more")
    if index < 0 or seed < 0:
        raise ValueError(f"index {index} and seed {seed} must not be negative")
    key = (zlib.crc32(split.encode()), index)
    rng = Generator(PCG64(SeedSequence(seed, spawn_key=key)))
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))](rng, image_size)
    places = [_Placement.draw(name, image_size, rng) for name in _choose_names(rng)]
    # Small objects lie on top of large ones; the train, which cannot give way, is painted first.
    places.sort(key=lambda place: (place.name != COEXISTENCE_CLASS, -place.diameter))
    train = next((place for place in places if place.name == COEXISTENCE_CLASS), None)
    _strew_stones(ground, rng)
    track = _lay_rails(ground, train, rng)
    canvas = _Canvas(ground)
    for place in places:
        canvas.add(place, rng)
    mask = np.array(canvas.classes, dtype=np.uint8)[canvas.owner]
    lit = canvas.image * light(rng, image_size)
    grain = rng.standard_normal(lit.shape, dtype=np.float32) * rng.uniform(0.01, 0.035)
    image = np.clip((lit + grain) * 255.0 + 0.5, 0, 255).astype(np.uint8)
    context = (track & (mask == 0)).astype(np.uint8)
    return SyntheticImage(f"{split}_{index:06d}", image, mask, context)
