"""The weak and the strong view of an image, from numbers drawn beforehand.

`draw_view` turns (seed, epoch, position) and the image's size into a frozen `ViewDraw`, and pure functions
turn image and draw into pixels, so a sample looks the same on any worker and after any resume. Both views
come from one decode and share geometry and blur; the strong view adds one colour operation. Recipe and
constants: released code.

The pixels' arithmetic is Pillow's, to the last bit. Where a C compiler is at hand, `views.c` does it on the
part of the image that the crop shows, several times as fast; elsewhere Pillow itself does.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info

from cosa_dist.data.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BLUR_PROBABILITY = 0.5
BLUR_RADIUS = (0.1, 2.0)
FLIP_PROBABILITY = 0.5
MAGNITUDES = range(1, 10)

# Tells the views' random numbers from those of the order, which uses the same seed.
_VIEW_STREAM = 2
log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(top, bottom, left, right) of the image content in a crop, half-open, in pixels."""


@dataclass(frozen=True)
class ViewDraw:
    """All random numbers of one sample's two views (sizes and offsets in pixels)."""

    width: int
    height: int
    flip: bool
    pad: tuple[int, int]
    window: tuple[int, int]
    blur_radius: float | None
    operation: str
    magnitude: int


def draw_view(
    *,
    seed: int,
    epoch: int,
    position: int,
    size: tuple[int, int],
    crop_size: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
) -> ViewDraw:
    """Draw the numbers of the sample at a position, for an image of `size` (width, height).

    The scaled sides are `int(scale * side)`, at least 1.
    """
    generator = np.random.default_rng(np.random.SeedSequence([_VIEW_STREAM, seed, epoch, position]))
    scale = generator.uniform(*scale_range)
    width, height = (max(1, int(scale * side)) for side in size)
    flip = bool(generator.random() < FLIP_PROBABILITY)
    canvas_height, canvas_width = max(crop_size, height), max(crop_size, width)
    spare = (canvas_height - height, canvas_width - width)
    beyond = (canvas_height - crop_size, canvas_width - crop_size)
    pad_top, pad_left, top, left = (int(generator.integers(most + 1)) for most in (*spare, *beyond))
    blur = bool(generator.random() < BLUR_PROBABILITY)
    radius = float(generator.uniform(*BLUR_RADIUS))
    names = tuple(COLOUR_OPERATIONS)
    return ViewDraw(
        width=width,
        height=height,
        flip=flip,
        pad=(pad_top, pad_left),
        window=(top, left),
        blur_radius=radius if blur else None,
        operation=names[int(generator.integers(len(names)))],
        magnitude=int(generator.integers(MAGNITUDES.start, MAGNITUDES.stop)),
    )


def _shown(
    size: tuple[int, int], crop_size: int, pad: tuple[int, int], window: tuple[int, int]
) -> tuple[Box, Box]:
    """Where an image of `size` (height, width) lies in the crop, and which of its pixels are shown there."""
    spans = []
    for side, offset, start in zip(size, pad, window, strict=True):
        first = max(offset - start, 0)
        last = min(offset - start + side, crop_size)
        source = start - offset + first
        spans.append((first, last, source, source + last - first))
    (top, bottom, *rows), (left, right, *columns) = spans
    return (top, bottom, left, right), (rows[0], rows[1], columns[0], columns[1])


def place_and_crop(
    image: Image.Image, crop_size: int, pad: tuple[int, int], window: tuple[int, int], fill: int = 0
) -> tuple[Image.Image, Box]:
    """Put the image on a canvas of `fill` at `pad` and cut the square at `window` (both y, x) out of it.

    Returns the crop of `crop_size` x `crop_size` and the box of the image content in it. The canvas has
    `max(crop_size, side)` pixels per side and is never built: only the part inside the window is copied.
    """
    box, (top, bottom, left, right) = _shown(image.size[::-1], crop_size, pad, window)
    content = image.crop((left, top, right, bottom))
    if content.size == (crop_size, crop_size):
        return content, box
    crop = Image.new(image.mode, (crop_size, crop_size), fill)
    crop.paste(content, (box[2], box[0]))
    return crop, box


def weak_view(
    image: Image.Image, draw: ViewDraw, crop_size: int, out: Pixels | None = None
) -> tuple[Pixels, Box]:
    """Scale (bilinear), flip, place and crop, and perhaps blur an RGB image.

    Returns the crop `[3, S, S]` uint8 (in `out`, if given), and the box of the image content in it.
    """
    crop = np.empty((3, crop_size, crop_size), np.uint8) if out is None else out
    box, shown = _shown((draw.height, draw.width), crop_size, draw.pad, draw.window)
    if box != (0, crop_size, 0, crop_size):
        crop[...] = 0
    if not _resize(image, draw, shown, crop[:, box[0] :, box[2] :]):
        scaled = _scaled(image, draw, Image.Resampling.BILINEAR)
        crop[...] = _planes(place_and_crop(scaled, crop_size, draw.pad, draw.window)[0])
    if draw.blur_radius is not None and not _blur(crop, box, draw.blur_radius):
        crop[...] = _planes(as_image(crop).filter(ImageFilter.GaussianBlur(draw.blur_radius)))
    return crop, box


def mask_view(mask: Tensor, draw: ViewDraw, crop_size: int, fill: int) -> Tensor:
    """A map `[H, W]` uint8 in the views' geometry, `[S, S]`: nearest pixels, `fill` outside the image."""
    scaled = _scaled(Image.fromarray(mask.numpy()), draw, Image.Resampling.NEAREST)
    crop = place_and_crop(scaled, crop_size, draw.pad, draw.window, fill)[0]
    return torch.from_numpy(np.array(crop, dtype=np.uint8))


def _scaled(image: Image.Image, draw: ViewDraw, resample: Image.Resampling) -> Image.Image:
    scaled = image.resize((draw.width, draw.height), resample)
    return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.flip else scaled


def strong_view(weak: Pixels, operation: str, magnitude: int, out: Pixels | None = None) -> Pixels:
    """Apply one of the `COLOUR_OPERATIONS`, of magnitude 1..9; views are `[3, S, S]` uint8."""
    strong = np.empty_like(weak) if out is None else out
    if operation == "identity":
        strong[...] = weak
    elif not _recolour(weak, operation, magnitude, strong):
        strong[...] = _planes(COLOUR_OPERATIONS[operation](as_image(weak), magnitude))
    return strong


def _enhancement(magnitude: int) -> float:
    """Factor of colour, contrast, brightness and sharpness: 0.28 .. 1.72 (released code)."""
    return magnitude * 1.8 / 10 + 0.1


COLOUR_OPERATIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalise": lambda image, _: ImageOps.equalize(image),
    "solarise": lambda image, m: ImageOps.solarize(image, min(int(m * 256 / 10), 255)),
    "colour": lambda image, m: ImageEnhance.Color(image).enhance(_enhancement(m)),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(_enhancement(m)),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(_enhancement(m)),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(_enhancement(m)),
    "posterise": lambda image, m: ImageOps.posterize(image, 4 - int(m * 4 / 10)),
}
"""The nine operations of the strong view by name (released code)."""


@cache
def compiled_views() -> ctypes.CDLL | None:
    """The compiled `views.c`, made once per user and machine type in the cache folder; None where that fails.

    Where the cache folder is of no use, a folder of the user's own for temporary files is taken. Call it
    before loader processes start: they then find it made. That it fails is a warning, but not of theirs.
    """
    reason = ""
    for temporary in (False, True):
        try:
            views = _library(temporary)
            views.cosa_grey.restype = ctypes.c_int64
            return views
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            reason = " ".join(str(error).split())[:300]
    if get_worker_info() is None:
        log.warning("views are made by Pillow, about a third as fast (CC names a C compiler): %s", reason)
    return None


def _library(temporary: bool) -> ctypes.CDLL:
    """The library; made if it is missing or damaged. Errors are those of files and of the compiler."""
    own = Path(tempfile.gettempdir()) / f"cosa_dist-{os.getuid()}" if temporary else None
    folder = own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cosa_dist"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid not in (0, os.getuid()):
        raise PermissionError(f"{folder} is another user's")
    source = Path(__file__).with_name("views.c")
    options = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off"]
    key = hashlib.sha256(source.read_bytes() + " ".join([platform.platform(), *options]).encode()).hexdigest()
    library = folder / f"views-{key[:16]}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(library))
    with tempfile.TemporaryDirectory(dir=folder) as making:
        made = Path(making) / "views.so"
        for chosen in ([*options, "-DCOSA_DISPATCH"], options):
            compiler = shlex.split(os.environ.get("CC") or "cc")
            command = [*compiler, *chosen, "-o", str(made), str(source), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"{compiler[0]} ends with code {done.returncode}: {done.stderr}")
        made.replace(library)
    return ctypes.CDLL(str(library))


def _resize(image: Image.Image, draw: ViewDraw, shown: Box, out: Pixels) -> bool:
    """Fill `out` from its corner on with the `shown` pixels of the scaled image; False: it is not done."""
    views, (top, bottom, left, right) = compiled_views(), shown
    target = (draw.width, draw.height)
    if views is None or bottom <= top or right <= left or not _rows_first(image.size, target):
        return False
    if draw.flip:
        left, right = draw.width - right, draw.width - left
    column, column_end, taps = _source_span(image.width, draw.width, left, right)
    row, row_end, _ = _source_span(image.height, draw.height, top, bottom)
    window = _four_bytes(image.crop((column, row, column_end, row_end)))
    rows, columns, width = row_end - row, column_end - column, right - left
    scratch = np.empty((rows + 6) * width, np.uint32)
    tables = np.empty(width * (4 * taps + 1), np.int32)
    pair = ctypes.c_int32 * 2
    source, scaled = pair(image.height, image.width), pair(draw.height, draw.width)
    failed = views.cosa_resize(
        *(_at(window), rows, columns, pair(row, column), source, scaled),
        *(top, left, bottom - top, width, int(draw.flip)),
        *(_at(out), out.strides[1], _at(scratch), _at(tables), taps),
    )
    return not failed


def _rows_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether Pillow surely scales along rows, then along columns (sizes: width, height).

    It does where both sides grow. Where they shrink, newer releases begin with the columns if that is less
    work, as in narrow images; the rounding then differs, and Pillow itself must do it.
    """
    (width, height), (new_width, new_height) = size, target
    if new_width >= width and new_height >= height:
        return True
    return height <= 2 * width and new_width * height <= 1.005 * width * new_height


def _source_span(source: int, target: int, first: int, last: int) -> tuple[int, int, int]:
    """Span of `source` that pixels [first, last) of `target` are mixed of, and at most how many each is."""
    scale = source / target
    support = math.ceil(max(scale, 1.0))
    begin, end = int(first * scale) - support - 1, int(last * scale) + support + 2
    return max(begin, 0), min(end, source), 2 if scale <= 1.0 else 2 * support + 1


def _four_bytes(image: Image.Image) -> NDArray[np.generic]:
    """An RGB image's pixels, four bytes each; not copied where Pillow lends its memory."""
    try:
        return np.asarray(pa.array(image).values)
    except (TypeError, ValueError, pa.ArrowException):  # Pillow before 11.2, or memory in several blocks
        return np.asarray(image.convert("RGBX"))


def _blur(crop: Pixels, box: Box, sigma: float) -> bool:
    """Blur the crop in place as Pillow's GaussianBlur does: three box passes per axis; False: not done.

    Pixels outside the image are zero, so only those that the blur can reach from `box` are looked at.
    """
    views = compiled_views()
    radius = box_radius(sigma)
    inner = int(radius)
    if views is None or inner > 1:
        return False
    one, two = np.float32(1), np.float32(2)
    whole = int(np.float32(1 << 24) / (radius * two + one))
    edge = ((1 << 24) - (2 * inner + 1) * whole) // 2
    side, margin = crop.shape[-1], 3 * (inner + 1)
    top, left = (max(first - margin, 0) for first in (box[0], box[2]))
    bottom, right = (min(last + margin, side) for last in (box[1], box[3]))
    scratch = np.empty(2 * (bottom - top + 4) * (right - left + 4), np.uint8)
    weights = (inner, ctypes.c_uint32(whole), ctypes.c_uint32(edge))
    return not views.cosa_blur(_at(crop), side, top, bottom, left, right, *weights, _at(scratch))


def box_radius(sigma: float) -> np.float32:
    """Radius of three box passes that together blur like a Gaussian (Pillow's, in its own float32 steps)."""
    single, one = np.float32, np.float32(1)
    variance = single(sigma) * single(sigma) / single(3)
    length = single(math.sqrt(12.0 * float(variance) + 1.0))
    inner = single(math.floor((float(length) - 1.0) / 2.0))
    rest = (single(2) * inner + one) * (inner * (inner + one) - single(3) * variance)
    return inner + rest / (single(6) * (variance - (inner + one) * (inner + one)))


def _recolour(weak: Pixels, operation: str, magnitude: int, out: Pixels) -> bool:
    """Write the view after a colour operation to `out`; False if it cannot be done here."""
    views, count = compiled_views(), weak[0].size
    if views is None or not (weak.flags.c_contiguous and out.flags.c_contiguous):
        return False
    grey = np.zeros(count, np.uint8)
    source, target, factor = _at(weak), _at(out), ctypes.c_float(_enhancement(magnitude))
    if operation in ("colour", "contrast"):
        total = views.cosa_grey(source, count, _at(grey))
        if operation == "contrast":
            grey[:] = int(total / count + 0.5)
    match operation:
        case "colour" | "contrast" | "brightness":
            views.cosa_blend(_at(grey), source, count, factor, target)
        case "sharpness":
            views.cosa_sharpness(source, weak.shape[-1], factor, _at(grey), target)
        case "solarise":
            views.cosa_fold(source, count, min(int(magnitude * 256 / 10), 255), 255, target)
        case "posterise":
            views.cosa_fold(source, count, 256, 256 - (1 << (4 + int(magnitude * 4 / 10))), target)
        case _:
            counts = np.empty((3, 256), np.int32)
            views.cosa_histogram(source, count, _at(counts))
            tables = np.stack([_table(operation, each) for each in counts])
            views.cosa_lookup(source, count, _at(tables), target)
    return True


def _table(operation: str, counts: NDArray[np.int32]) -> Pixels:
    """What autocontrast or equalize makes of each value of a channel that has these counts; `[256]` uint8."""
    values = np.arange(256)
    there = np.flatnonzero(counts)
    low, high = int(there[0]), int(there[-1])
    step = int(counts.sum() - counts[high]) // 255
    if high <= low or (operation == "equalise" and not step):
        return values.astype(np.uint8)
    if operation == "auto_contrast":
        scale = 255.0 / (high - low)
        found = (values * scale - low * scale).astype(np.int64)
    else:
        found = (step // 2 + np.cumsum(counts, dtype=np.int64) - counts) // step
    return np.clip(found, 0, 255).astype(np.uint8)


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def as_image(planes: Pixels) -> Image.Image:
    """An RGB image of `[3, H, W]` uint8."""
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _planes(image: Image.Image) -> Pixels:
    """An RGB image's pixels as `[3, H, W]` uint8."""
    return np.stack([np.asarray(band) for band in image.split()])


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image's pixels as `[3, H, W]` uint8."""
    return torch.from_numpy(_planes(image))


def normalise(images: Tensor) -> Tensor:
    """Return uint8 `[..., 3, H, W]` as float32 with ImageNet mean and standard deviation removed."""
    if images.dim() < 3 or images.shape[-3] != 3:
        raise DataError(f"images are [..., 3, H, W]; got {list(images.shape)}")
    mean, std = (channel_planes(values, images.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return images.to(torch.float32).div(255.0).sub(mean).div(std)


def channel_planes(values: Sequence[float], device: torch.device) -> Tensor:
    """A number for each channel, `[C, 1, 1]`, made on the device: a GPU's step would wait for a copy."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
