"""Bytes to pixels and back: photographs as RGB, masks as class ids.

A damaged file, a picture that would not fit into memory and a mask that holds colours instead of class ids
are refused everywhere in the same words. EXIF rotation is not applied: masks belong to the pixels as they are
stored.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosa_dist.data.errors import RecordError

MAX_PIXELS = 2**26
"""Largest picture that is decoded (67 megapixels); anything larger is taken for a bomb."""

ORIENTATION = 0x0112
"""EXIF tag of the rotation or mirroring with which a picture is to be shown."""

# PIL stretches grey PNGs of 2 and 4 bits to 0..255; class ids need the stored values.
_GREY_STRETCH = {2: 85, 4: 17}
_ID_MODES = ("P", "L", "1", "I;16", "I;16B", "I")


def _open(data: bytes, what: str) -> Image.Image:
    """Open and fully decode `data`; raises `RecordError` that calls the picture `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise RecordError(
                f"{what} of {picture.width}x{picture.height} pixels is larger than the limit of "
                f"{MAX_PIXELS} pixels; scale it down first"
            )
        picture.load()
    except RecordError:
        raise
    except Image.DecompressionBombError as error:
        raise RecordError(
            f"{what} is larger than the limit of {MAX_PIXELS} pixels; scale it down first"
        ) from error
    except Exception as error:  # PIL's readers raise many kinds on damaged data
        text = " ".join(str(error).split()) or type(error).__name__
        if text.startswith("cannot identify"):  # PIL adds a memory address
            text = "not a known picture format"
        raise RecordError(f"{what} cannot be decoded: {text}") from error
    return picture


def decode_image(data: bytes) -> Image.Image:
    """Decode a photograph to a PIL image in RGB mode; raises `RecordError` if it is damaged.

    Grey values of 16 bits keep their upper 8; PIL alone would turn almost all of them white.
    """
    picture = _open(data, "image")
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise RecordError(
            f"image holds values of 32 bits (mode {picture.mode}), whose range is unknown; save it with 8 or "
            "16 bits a channel"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return picture.convert("RGB")


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a decoded picture, 1..8; 1 (as stored) where none can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation: Any = picture.getexif().get(ORIENTATION)
    except Exception:  # damaged notes raise many kinds
        return 1
    return int(orientation) if orientation in range(2, 9) else 1


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Decode a palette or grey mask to class ids `[H, W]` uint8; raises `RecordError` otherwise."""
    picture = _open(data, "mask")
    if picture.mode not in _ID_MODES:
        raise RecordError(
            f"mask has colours (mode {picture.mode}), not class ids; write the ids of its label "
            "map's colours into a grey-level PNG (docs/data.md shows how)"
        )
    if picture.format == "JPEG":
        raise RecordError("mask is a JPEG, whose values are not exact; store masks as PNG")
    ids = np.asarray(picture).astype(np.int64)
    ids //= _GREY_STRETCH.get(_grey_png_bits(data), 1)
    if ids.min(initial=0) < 0 or ids.max(initial=0) > 255:
        raise RecordError(
            f"mask value {int(ids.max())} does not fit into 8 bits; write the classes' ids into it"
        )
    return ids.astype(np.uint8)


def _grey_png_bits(data: bytes) -> int:
    """The bits per pixel of a grey-level PNG, 0 for any other file."""
    is_grey_png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[25] == 0
    return data[24] if is_grey_png else 0


def encode_mask(ids: NDArray[np.uint8]) -> bytes:
    """Encode class ids `[H, W]` uint8 as the bytes of an 8-bit grey-level PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def as_grey_png(data: bytes, ids: NDArray[np.uint8]) -> bytes:
    """`data` itself if it is an 8-bit grey-level PNG already, else `ids` encoded as one."""
    return data if _grey_png_bits(data) == 8 else encode_mask(ids)


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an RGB picture `[H, W, 3]` uint8 as a JPEG of quality 95 with full colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
