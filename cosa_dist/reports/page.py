"""What pages share: templates filled with escaped values, and pictures and curves as part of the file.

A page must open from any folder and without a network.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cosa_dist.data.catalog import IGNORE, voc_colour_map
from cosa_dist.data.reading.views import Box

MASK_OPACITY = 0.6
IGNORE_COLOUR = (224, 224, 192)
BOX_COLOUR = (255, 64, 64)


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; everything that came from data is escaped."""
    environment = Environment(
        loader=PackageLoader("cosa_dist.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": data_uri, "with_mask": with_mask, "score": score_text}
    return environment.get_template(template).render(**values)


def score_text(value: float | None) -> str:
    """A score with two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def finite(values: Iterable[float | None]) -> list[float | None]:
    """Numbers for JSON: those that are not finite become None."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def curve_data(points: Iterable[tuple[int, float]]) -> dict[str, list[Any]]:
    """A curve as the pages' scripts read it."""
    points = list(points)
    return {"step": [step for step, _ in points], "value": finite(value for _, value in points)}


def data_uri(image: Image.Image, longest_side: int = 320) -> str:
    """Return an image as a JPEG data URI, scaled down to at most `longest_side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def mask_colours() -> NDArray[np.uint8]:
    """`[256, 3]` colours of the mask values: the VOC rule, and a pale one for ignored pixels."""
    colours = np.array(voc_colour_map(), dtype=np.uint8)
    colours[IGNORE] = IGNORE_COLOUR
    return colours


def with_mask(image: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """Lay a mask `[H, W]` of class ids over an RGB image of its size; the background stays clear."""
    colours = Image.fromarray(mask_colours()[mask])
    opacity = Image.fromarray(np.where(mask == 0, 0, int(255 * MASK_OPACITY)).astype(np.uint8))
    return Image.composite(colours, image, opacity)


def with_box(image: Image.Image, box: Box) -> Image.Image:
    """Outline the box (top, bottom, left, right; half-open) on a copy of an RGB image."""
    top, bottom, left, right = box
    outlined = image.copy()
    ImageDraw.Draw(outlined).rectangle((left, top, right - 1, bottom - 1), outline=BOX_COLOUR, width=2)
    return outlined
