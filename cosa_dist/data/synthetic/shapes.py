"""The objects of the generated data set: silhouettes, their telling part, their common rest.

Each kind of object has one small part that only it has (a head, a hub, a gem: the `mark`) and a larger rest
(the `body`) whose pattern it shares with another kind and whose hues border on that one's. A classifier
trained on tags alone looks at the mark, so its class activation maps cover a part of the object; the rest
belongs to it by continuity.

Local coordinates `u` (right) and `v` (down) span [-1, 1] over the object's diameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cosa_dist.data.synthetic.textures import Field, Region, colour, dots, mottled, noise, scales, stripes


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
