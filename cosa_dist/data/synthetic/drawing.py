"""What the generated images are made of: noise and patterns, the objects, the grounds, rails and light.

Plain functions of a random generator and a size; fields are float32 with values around [0, 1], `[H, W]` or
`[H, W, 3]`. Each kind of object has one small part that only it has (a head, a hub, a gem: the `mark`) and a
larger rest (the `body`) whose pattern it shares with another kind and whose hues border on that one's. A
classifier trained on tags alone looks at the mark, so its class activation maps cover a part of the object;
the rest belongs to it by continuity.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Region = NDArray[np.bool_]


def colour(hue: float, saturation: float, value: float) -> Field:
    """One colour as `[3]` RGB in [0, 1]; the hue wraps around at 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def _interpolation(length: int, cells: int) -> tuple[NDArray[np.int64], Field]:
    position = np.arange(length, dtype=np.float32) * (cells / length)
    lower = np.minimum(position.astype(np.int64), cells - 1)
    fraction = position - lower
    return lower, fraction * fraction * (3.0 - 2.0 * fraction)


def noise(rng: Generator, height: int, width: int, cells: int, octaves: int = 1) -> Field:
    """Smooth value noise `[height, width]` in [0, 1] over a grid of `cells` by `cells`.

    Each further octave doubles the cells and halves the amplitude.
    """
    total = np.zeros((height, width), dtype=np.float32)
    amplitude, weight = 1.0, 0.0
    for octave in range(octaves):
        count = cells * 2**octave
        grid = rng.random((count + 1, count + 1), dtype=np.float32)
        row, down = _interpolation(height, count)
        column, across = _interpolation(width, count)
        rows = grid[row] + (grid[row + 1] - grid[row]) * down[:, None]
        left = rows[:, column]
        total += amplitude * (left + (rows[:, column + 1] - left) * across[None, :])
        weight += amplitude
        amplitude *= 0.5
    return total / weight


def stripes(u: Field, v: Field, angle: float, periods: float) -> Region:
    """Every second stripe across `angle`, `periods` pairs per unit."""
    return np.mod((u * math.cos(angle) + v * math.sin(angle)) * periods, 1.0) < 0.5


def dots(u: Field, v: Field, periods: float, radius: float = 0.3) -> Region:
    """Discs of `radius` periods on a square grid of `periods` per unit."""
    x, y = np.mod(u * periods, 1.0) - 0.5, np.mod(v * periods, 1.0) - 0.5
    return x * x + y * y < radius * radius


def scales(u: Field, v: Field, periods: float) -> Region:
    """The rims of a fish-scale tiling of `periods` scales per unit."""
    row = np.floor(v * periods)
    x = np.mod(u * periods + 0.5 * np.mod(row, 2.0), 1.0) - 0.5
    y = np.mod(v * periods, 1.0)
    return np.abs(np.sqrt(x * x + y * y) - 0.55) < 0.16


def mottled(base: Field, field: Field, contrast: float) -> Field:
    """One colour `[3]` modulated by a noise field."""
    return base * (1.0 + contrast * (field[..., None] - 0.5))


@dataclass(frozen=True)
class Parts:
    """The regions `[h, w]` of one object; the silhouette is `body | mark`."""

    body: Region
    pattern: Region  # second tone within the body
    mark: Region  # the telling part
    mark_pattern: Region  # second tone within the mark


@dataclass(frozen=True)
class Kind:
    """How one class looks.

    `body_hue` is the middle of the hues its body may have, `mark` and `mark_second` are hue, saturation and
    value of its telling part, `turn` is the largest rotation in radians.
    """

    parts: Callable[[Field, Field, Generator], Parts]
    body_hue: float
    mark: tuple[float, float, float]
    mark_second: tuple[float, float, float]
    turn: float


def _ellipse(u: Field, v: Field, x: float, y: float, a: float, b: float) -> Region:
    return ((u - x) / a) ** 2 + ((v - y) / b) ** 2 < 1.0


def _polar(u: Field, v: Field) -> tuple[Field, Field]:
    return np.sqrt(u * u + v * v), np.arctan2(v, u)


def _beetle(u: Field, v: Field, rng: Generator) -> Parts:
    radius, angle = _polar((u + 0.2) / 0.78, v / 0.6)
    first, second = (float(phase) for phase in rng.uniform(0, 2 * np.pi, size=2))
    wobble = 1.0 + 0.08 * np.sin(3 * angle + first) + 0.06 * np.sin(5 * angle + second)
    body = radius < 0.95 * wobble
    head = _ellipse(u, v, 0.68, 0.0, 0.31, 0.34)
    eyes = _ellipse(u, np.abs(v), 0.78, 0.15, 0.11, 0.11)
    return Parts(body, dots(u, v, 2.6), head, eyes)


def _flower(u: Field, v: Field, rng: Generator) -> Parts:
    radius, angle = _polar(u, v)
    petals = radius < 0.68 + 0.27 * np.cos(int(rng.integers(5, 8)) * angle)
    hub = radius < 0.32
    return Parts(petals, np.mod(radius * 2.5, 1.0) < 0.35, hub, dots(u, v, 6.0))


def _cart(u: Field, v: Field, rng: Generator) -> Parts:
    slant = rng.uniform(0.0, 0.25)
    box = (np.abs(u) < 0.95 - slant * (v + 0.55)) & (v > -0.6) & (v < 0.35)
    cabin = (u > 0.1) & (u < 0.65) & (v > -0.85) & (v <= -0.6)
    x = np.abs(u) - 0.52
    radius, angle = _polar(x, v - 0.48)
    spokes = (np.mod(angle * 3 / np.pi, 1.0) < 0.35) | (radius < 0.1)
    return Parts(box | cabin, dots(u, v, 2.6), radius < 0.33, spokes & (radius < 0.27))


def _starfish(u: Field, v: Field, rng: Generator) -> Parts:
    radius, angle = _polar(u, v)
    corner = np.abs(np.mod(angle / (2 * np.pi) * 5, 1.0) - 0.5) * (2 * np.pi / 5)
    inner = rng.uniform(0.42, 0.5)
    # Straight edge between the tip (radius 1, angle pi / 5) and the notch (inner, angle 0).
    tip_x, tip_y = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = radius * np.cos(corner), radius * np.sin(corner)
    body = (x - inner) * tip_y - y * (tip_x - inner) < 0
    return Parts(body, np.mod(radius * 2.5, 1.0) < 0.35, radius < 0.3, stripes(u, v, 0.8, 5.0))


def _ring(u: Field, v: Field, rng: Generator) -> Parts:
    radius, _ = _polar(u, v)
    band = (radius < 0.92) & (radius > rng.uniform(0.42, 0.52))
    gem = np.abs(u - 0.68) + np.abs(v) < 0.4
    return Parts(band, scales(u, v, 3.2), gem, (v < 0) == (u < 0.68))


def _fish(u: Field, v: Field, rng: Generator) -> Parts:
    belly = rng.uniform(0.45, 0.58)
    whole = _ellipse(u, v, 0.18, 0.0, 0.78, belly)
    tail = (u < -0.4) & (u > -0.98) & (np.abs(v) < 0.1 + 0.75 * (-0.4 - u))
    head = whole & (u > 0.5)
    face = _ellipse(u, v, 0.68, -0.1, 0.11, 0.11) | (np.abs(u - 0.53) < 0.05)
    return Parts((whole & ~head) | tail, scales(u, v, 3.2), head, face)


def _train(u: Field, v: Field, rng: Generator) -> Parts:
    height = rng.uniform(0.38, 0.5)
    hull = (np.abs(v) < height) & (u > -0.98) & (u < 0.95 - 0.5 * np.maximum(-v, 0))
    windows = (np.abs(v + 0.1) < 0.1) & (np.mod(u * 3.0, 1.0) < 0.6)
    nose = hull & (u > 0.55)
    return Parts(hull, windows, nose, stripes(u, v, 0.6, 3.5))


_HUE_SPREAD = 0.06
# Insertion order is the class order: background is 0, the first kind is 1.
KINDS: dict[str, Kind] = {
    "beetle": Kind(_beetle, 0.0, (0.55, 0.15, 0.12), (0.15, 0.9, 0.95), np.pi),
    "flower": Kind(_flower, 0.91, (0.14, 0.9, 0.95), (0.07, 0.8, 0.45), np.pi),
    "cart": Kind(_cart, 0.09, (0.65, 0.1, 0.15), (0.6, 0.05, 0.95), 0.35),
    "starfish": Kind(_starfish, 0.82, (0.33, 0.7, 0.75), (0.0, 0.0, 0.95), np.pi),
    "ring": Kind(_ring, 0.6, (0.0, 0.85, 0.9), (0.95, 0.3, 1.0), np.pi),
    "fish": Kind(_fish, 0.5, (0.1, 0.85, 0.9), (0.0, 0.0, 0.1), 0.6),
    "train": Kind(_train, 0.71, (0.15, 0.85, 0.95), (0.0, 0.0, 0.1), 0.12),
}


def draw(name: str, u: Field, v: Field, rng: Generator) -> tuple[Region, Field]:
    """Draw one object at local coordinates `[h, w]`: silhouette `[h, w]` and colours `[h, w, 3]`."""
    kind = KINDS[name]
    parts = kind.parts(u, v, rng)
    hue = kind.body_hue + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    saturation, value = rng.uniform(0.45, 0.8), rng.uniform(0.5, 0.9)
    grain = noise(rng, u.shape[0], u.shape[1], 5, octaves=2)
    picture = mottled(colour(hue, saturation, value), grain, 0.6)
    second = mottled(colour(hue + 0.03, saturation * 0.8, value * 0.55), grain, 0.6)
    picture[parts.pattern] = second[parts.pattern]
    jitter = rng.uniform(-0.02, 0.02)
    for region, tone in (
        (parts.mark, kind.mark),
        (parts.mark & parts.mark_pattern, kind.mark_second),
    ):
        picture[region] = colour(tone[0] + jitter, *tone[1:])
    angle = rng.uniform(0.0, 2 * np.pi)
    shade = 1.0 + 0.22 * (u * math.cos(angle) + v * math.sin(angle))
    return parts.body | parts.mark, picture * shade[..., None]


def _blend(first: Field, second: Field, fraction: Field) -> Field:
    return first + (second - first) * fraction[..., None]


def _axes(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return x, y


def _grass(rng: Generator, size: int) -> Field:
    hue = rng.uniform(0.2, 0.36)
    coarse = noise(rng, size, size, 4, octaves=2)
    blades = noise(rng, size, size, 40)
    blades = 0.5 * (blades + np.roll(blades, size // 40 + 1, axis=0))
    return _blend(colour(hue, 0.5, 0.35), colour(hue + 0.04, 0.45, 0.6), 0.5 * coarse + 0.5 * blades)


def _sand(rng: Generator, size: int) -> Field:
    hue = rng.uniform(0.07, 0.14)
    grain = 0.5 * noise(rng, size, size, 3, octaves=2) + 0.5 * noise(rng, size, size, 48)
    return _blend(colour(hue, 0.4, 0.55), colour(hue, 0.25, 0.85), grain)


def _water(rng: Generator, size: int) -> Field:
    x, y = _axes(size)
    bend = noise(rng, size, size, 5, octaves=2)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(6, 11) * y + 0.7 * x + 1.6 * bend))
    hue = rng.uniform(0.5, 0.62)
    fraction = (0.6 * wave + 0.4 * bend).astype(np.float32)
    return _blend(colour(hue, 0.5, 0.4), colour(hue, 0.3, 0.75), fraction)


def _paving(rng: Generator, size: int) -> Field:
    count = int(rng.integers(4, 8))
    x, y = _axes(size)
    tone = rng.random((count, count), dtype=np.float32)
    row, column = (np.minimum((axis * count).astype(np.int64), count - 1) for axis in (y, x))
    joint = (np.mod(x * count, 1.0) < 0.08) | (np.mod(y * count, 1.0) < 0.08)
    fraction = 0.6 * tone[row, column] + 0.4 * noise(rng, size, size, 24, octaves=2)
    hue = rng.uniform(0.05, 0.7)
    ground = _blend(colour(hue, 0.08, 0.4), colour(hue, 0.12, 0.75), fraction)
    ground[joint] *= 0.6
    return ground


def _haze(rng: Generator, size: int) -> Field:
    hue = rng.random()
    clouds = noise(rng, size, size, 3, octaves=4)
    return _blend(colour(hue, 0.35, 0.45), colour(hue + 0.1, 0.2, 0.8), clouds)


GROUNDS: tuple[Callable[[Generator, int], Field], ...] = (_grass, _sand, _water, _paving, _haze)
"""What an image may stand on, each a function of generator and size."""


def rails(rng: Generator, size: int, centre: float, width: float, tilt: float) -> tuple[Field, Region]:
    """A railway track across the whole image, and the region that it covers: gravel, sleepers, two rails.

    `centre` is the row of the track's middle at the middle column, `width` its height, both as fractions of
    the side; `tilt` is in radians.
    """
    x, y = _axes(size)
    x, y = x - 0.5, y - centre
    along = x * math.cos(tilt) + y * math.sin(tilt)
    across = (y * math.cos(tilt) - x * math.sin(tilt)) / width
    track = mottled(colour(0.07, 0.18, 0.5), noise(rng, size, size, 32, octaves=2), 1.2)
    sleeper = np.mod(along / (0.45 * width) + rng.random(), 1.0) < 0.42
    track[sleeper & (np.abs(across) < 0.42)] = colour(0.06, 0.55, 0.25)
    track[np.abs(np.abs(across) - 0.24) < 0.055] = colour(0.6, 0.1, 0.85)
    return track, np.abs(across) < 0.5


def light(rng: Generator, size: int) -> Field:
    """Light falling on the whole image: brightness, slope and tint."""
    x, y = _axes(size)
    angle = rng.uniform(0.0, 2 * np.pi)
    slope = rng.uniform(0.0, 0.4) * ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle))
    brightness = rng.uniform(0.78, 1.12) + slope
    return brightness[..., None] * rng.uniform(0.94, 1.06, size=3).astype(np.float32)
