"""Outlines of COCO's JSON as exporters write them, and the mask that is drawn of them.

Exporters write numbers as text or as 1.0, polygons as points or as one flat list, and run-length codes as
lists, as text or as `str(bytes)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import MAX_PIXELS, encode_mask
from cosa_dist.data.errors import RecordError

Id = int | str
"""Identifier of an image, an annotation or a category."""

_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")
_FARTHEST = 100_000.0
"""Largest coordinate, in pixels; drawing takes time and memory in proportion to it."""


class Code(NamedTuple):
    """A run-length code: (height, width) and COCO's compressed counts."""

    size: tuple[int, int]
    counts: bytes


Outline = tuple[bytes | Code, ...]
"""Parts of an object: codes, or polygons as bytes of doubles x, y, x, y, ... (none under three points)."""


def as_id(value: Any) -> Id | None:
    """Return an id: 1, 1.0, "1" and "0001" are the same one, other text is itself; None if there is none."""
    if isinstance(value, str):
        match = _WHOLE_NUMBER.fullmatch(value.strip())
        return int(match[1]) if match else value.strip() or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_length(value: Any) -> int | None:
    """Return a width or height in pixels, or None if it is no positive whole number."""
    number = as_id(value)
    return number if isinstance(number, int) and 0 < number < 2**31 else None


def as_outline(value: Any) -> Outline | str:
    """Return a `segmentation` in one form, or why it cannot be used."""
    if not value:
        return "no outline"
    try:
        flat = isinstance(value, dict) or not isinstance(value[0], list | dict)
        listed = [value] if flat or all(map(_is_point, value)) else value
        parts = tuple(_code(part) if isinstance(part, dict) else _polygon(part) for part in listed)
    except (TypeError, ValueError, OverflowError, LookupError):
        return "an outline that cannot be read as polygons or as a run-length code"
    if not any(parts):
        return "an outline of fewer than three points"
    if all(isinstance(part, bytes) and np.frombuffer(part).max(initial=0.0) <= 1.0 for part in parts):
        return "an outline within the first pixel, as of shares of width and height"
    return parts


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list | dict)


def _polygon(points: Any) -> bytes:
    if not isinstance(points, list):
        raise TypeError("a polygon is a list")
    values = np.array(points, dtype=np.float64)
    if values.ndim > 1 and not (values.shape[-1] == 2 and values.size == 2 * values.shape[-2]):
        raise ValueError("neither a flat list nor a list of points")
    if values.size % 2 or not np.abs(values).max(initial=0.0) <= _FARTHEST:  # also true of NaN
        raise ValueError("an odd count of coordinates, or one that is no place in a picture")
    return values.tobytes() if values.size >= 6 else b""


def _code(written: dict[str, Any]) -> Code:
    counts = written["counts"]
    height, width = map(as_length, written["size"])
    if height is None or width is None or height * width > MAX_PIXELS:
        raise ValueError("not a size")
    runs = np.array(_run_lengths(counts) if isinstance(counts, str) else counts, dtype=np.float64)
    if runs.ndim != 1 or not runs.min(initial=0) >= 0 or (runs % 1).any() or runs.sum() != height * width:
        raise ValueError("the code does not fill its size")
    listed = {"size": [height, width], "counts": runs.astype(np.int64).tolist()}
    return Code((height, width), rle_masks.frPyObjects(listed, height, width)["counts"])


def _run_lengths(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed text.

    Each character holds five bits of a number, the lowest first, a sixth says that more follow; from the
    fourth number on, the difference to the one two places before is stored. Not left to pycocotools, which
    reads beyond the end of damaged text.
    """
    if text[:2] in ("b'", 'b"'):
        text = text[2:-1].replace("\\\\", "\\")
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("not a character of the code")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the code is cut")
    return runs


@dataclass(frozen=True, slots=True)
class CocoMask:
    """The mask of one image: its size and its instances as (class id, crowd, outline)."""

    where: str
    width: int
    height: int
    instances: tuple[tuple[int, bool, Outline], ...]

    def read(self) -> bytes:
        """Draw the mask as a PNG; raises `RecordError` if that cannot be done."""
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise RecordError(f"image is said to have {self.width}x{self.height} pixels; mend the JSON")
        try:
            return encode_mask(self._drawn())
        except Exception as error:  # pycocotools raises many kinds
            raise RecordError("an outline of the annotations cannot be drawn; mend the JSON") from error

    def identity(self) -> str:
        """Return all that the mask is drawn from."""
        return repr(self)

    def _drawn(self) -> NDArray[np.uint8]:
        """Return the mask `[H, W]`: crowd regions first, then objects from large to small."""
        ids = np.zeros((self.height, self.width), dtype=np.uint8, order="F")  # the order of the codes
        regions = [(class_id, crowd, self._region(outline)) for class_id, crowd, outline in self.instances]
        for class_id, crowd, region in sorted(regions, key=lambda r: (not r[1], -np.count_nonzero(r[2]))):
            np.copyto(ids, IGNORE if crowd else class_id, where=region)
        return ids

    def _region(self, outline: Outline) -> NDArray[np.bool_]:
        """Return the pixels `[H, W]` of an outline; what lies outside the image is cut off."""
        polygons = [np.frombuffer(part) for part in outline if isinstance(part, bytes) and part]
        codes = rle_masks.frPyObjects(polygons, self.height, self.width) if polygons else []
        codes += [part._asdict() for part in outline if isinstance(part, Code)]
        region: NDArray[np.bool_] = rle_masks.decode(rle_masks.merge(codes)).view(np.bool_)
        return region
