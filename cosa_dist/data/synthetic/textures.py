"""Procedural surfaces of the generated data set: noise fields, patterns, grounds, rails and light.

Plain functions of a random generator and a size; all fields are float32 with values around [0, 1], `[H, W]`
or `[H, W, 3]`.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
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
