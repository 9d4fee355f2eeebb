"""Procedural surfaces of the generated data set: noise fields, patterns, grounds and light.

Everything is a plain function of a random generator and a size, and returns float32 arrays with
values around [0, 1]; the composition into pictures is in `synthetic`. All of it is ours.
"""

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
    """Return one colour as `[3]` RGB in [0, 1]; the hue wraps around at 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def _interpolation(length: int, cells: int) -> tuple[NDArray[np.int64], Field]:
    position = np.arange(length, dtype=np.float32) * (cells / length)
    lower = np.minimum(position.astype(np.int64), cells - 1)
    fraction = position - lower
    return lower, fraction * fraction * (3.0 - 2.0 * fraction)


def noise(rng: Generator, height: int, width: int, cells: int, octaves: int = 1) -> Field:
    """Smooth value noise.

    Args:
        rng: Source of the grid values.
        height: Rows of the field.
        width: Columns of the field.
        cells: Grid cells along each axis of the coarsest octave.
        octaves: Number of octaves; each doubles the cells and halves the amplitude.

    Returns:
        `[height, width]` field in [0, 1].
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
    """Mark every second stripe; `periods` stripes pairs per unit of `u`, `v` across `angle`."""
    phase = (u * math.cos(angle) + v * math.sin(angle)) * periods
    return np.mod(phase, 1.0) < 0.5


def dots(u: Field, v: Field, periods: float, radius: float = 0.3) -> Region:
    """Mark discs of `radius` periods on a square grid of `periods` per unit."""
    x, y = np.mod(u * periods, 1.0) - 0.5, np.mod(v * periods, 1.0) - 0.5
    return x * x + y * y < radius * radius


def scales(u: Field, v: Field, periods: float) -> Region:
    """Mark the rims of a fish-scale tiling of `periods` scales per unit."""
    row = np.floor(v * periods)
    x = np.mod(u * periods + 0.5 * np.mod(row, 2.0), 1.0) - 0.5
    y = np.mod(v * periods, 1.0)
    return np.abs(np.sqrt(x * x + y * y) - 0.55) < 0.16


def mottled(base: Field, field: Field, contrast: float) -> Field:
    """Modulate one colour `[3]` by a noise field `[H, W]`: `[H, W, 3]`."""
    return base * (1.0 + contrast * (field[..., None] - 0.5))


def _blend(first: Field, second: Field, share: Field) -> Field:
    return first + (second - first) * share[..., None]


def _axes(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return x, y


def grass(rng: Generator, size: int) -> Field:
    """Green to olive ground with fine upright blades: `[size, size, 3]`."""
    hue = rng.uniform(0.2, 0.36)
    coarse = noise(rng, size, size, 4, octaves=2)
    blades = noise(rng, size, size, 40)
    blades = 0.5 * (blades + np.roll(blades, size // 40 + 1, axis=0))
    first, second = colour(hue, 0.5, 0.35), colour(hue + 0.04, 0.45, 0.6)
    return _blend(first, second, 0.5 * coarse + 0.5 * blades)


def sand(rng: Generator, size: int) -> Field:
    """Pale warm ground with fine grain and soft dunes: `[size, size, 3]`."""
    hue = rng.uniform(0.07, 0.14)
    grain = 0.5 * noise(rng, size, size, 3, octaves=2) + 0.5 * noise(rng, size, size, 48)
    return _blend(colour(hue, 0.4, 0.55), colour(hue, 0.25, 0.85), grain)


def water(rng: Generator, size: int) -> Field:
    """Blue-green ground with bent waves: `[size, size, 3]`."""
    x, y = _axes(size)
    bend = noise(rng, size, size, 5, octaves=2)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(6, 11) * y + 0.7 * x + 1.6 * bend))
    hue = rng.uniform(0.5, 0.62)
    share = (0.6 * wave + 0.4 * bend).astype(np.float32)
    return _blend(colour(hue, 0.5, 0.4), colour(hue, 0.3, 0.75), share)


def paving(rng: Generator, size: int) -> Field:
    """Grey tiles of slightly different tone with dark joints: `[size, size, 3]`."""
    count = int(rng.integers(4, 8))
    x, y = _axes(size)
    tone = rng.random((count, count), dtype=np.float32)
    row = np.minimum((y * count).astype(np.int64), count - 1)
    column = np.minimum((x * count).astype(np.int64), count - 1)
    joint = (np.mod(x * count, 1.0) < 0.08) | (np.mod(y * count, 1.0) < 0.08)
    share = 0.6 * tone[row, column] + 0.4 * noise(rng, size, size, 24, octaves=2)
    base = rng.uniform(0.05, 0.7)
    ground = _blend(colour(base, 0.08, 0.4), colour(base, 0.12, 0.75), share)
    ground[joint] *= 0.6
    return ground


def haze(rng: Generator, size: int) -> Field:
    """Clouded ground in two near, weak colours of any hue: `[size, size, 3]`."""
    hue = rng.random()
    share = noise(rng, size, size, 3, octaves=4)
    return _blend(colour(hue, 0.35, 0.45), colour(hue + 0.1, 0.2, 0.8), share)


GROUNDS: tuple[Callable[[Generator, int], Field], ...] = (grass, sand, water, paving, haze)


def rails(rng: Generator, size: int, centre: float, width: float, tilt: float) -> tuple[Field, Region]:
    """Draw a railway track across the whole picture: gravel, sleepers and two steel rails.

    Args:
        rng: Source of the gravel and of the sleepers' phase.
        size: Side of the picture in pixels.
        centre: Row of the track's middle at the picture's middle column, as a share of the side.
        width: Height of the track as a share of the side.
        tilt: Angle of the track in radians.

    Returns:
        The track's colours `[size, size, 3]` and the region it covers `[size, size]`.
    """
    x, y = _axes(size)
    x, y = x - 0.5, y - centre
    along = x * math.cos(tilt) + y * math.sin(tilt)
    across = (y * math.cos(tilt) - x * math.sin(tilt)) / width
    region = np.abs(across) < 0.5
    gravel = noise(rng, size, size, 32, octaves=2)
    track = mottled(colour(0.07, 0.18, 0.5), gravel, 1.2)
    sleeper = np.mod(along / (0.45 * width) + rng.random(), 1.0) < 0.42
    track[sleeper & (np.abs(across) < 0.42)] = colour(0.06, 0.55, 0.25)
    track[np.abs(np.abs(across) - 0.24) < 0.055] = colour(0.6, 0.1, 0.85)
    return track, region


def light(rng: Generator, size: int) -> Field:
    """Light falling on the whole picture: brightness, slope and tint, `[size, size, 3]`."""
    x, y = _axes(size)
    angle = rng.uniform(0.0, 2 * np.pi)
    slope = rng.uniform(0.0, 0.4) * ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle))
    brightness = rng.uniform(0.78, 1.12) + slope
    tint = rng.uniform(0.94, 1.06, size=3).astype(np.float32)
    return brightness[..., None] * tint
