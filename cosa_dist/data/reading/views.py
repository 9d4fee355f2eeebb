"""The weak and the strong view of an image, from numbers drawn beforehand.

`draw_view` turns (seed, epoch, position) and the image's size into a frozen `ViewDraw`, and pure functions
turn image and draw into pixels, so a sample looks the same on any worker and after any resume. Both views
come from one decode and share geometry and blur; the strong view adds one colour operation. Recipe and
constants: released code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from cosa_dist.data.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BLUR_PROBABILITY = 0.5
BLUR_RADIUS = (0.1, 2.0)
FLIP_PROBABILITY = 0.5
MAGNITUDES = range(1, 10)

# Tells the views' random numbers from those of the order, which uses the same seed.
_VIEW_STREAM = 2

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


def place_and_crop(
    image: Image.Image, crop_size: int, pad: tuple[int, int], window: tuple[int, int], fill: int = 0
) -> tuple[Image.Image, Box]:
    """Put the image on a canvas of `fill` at `pad` and cut the square at `window` (both y, x) out of it.

    Returns the crop of `crop_size` x `crop_size` and the box of the image content in it. The canvas has
    `max(crop_size, side)` pixels per side and is never built: only the part inside the window is copied.
    """
    spans = []
    for side, offset, start in zip(image.size[::-1], pad, window, strict=True):
        first = max(offset - start, 0)
        last = min(offset - start + side, crop_size)
        spans.append((first, last, start - offset + first))
    (top, bottom, source_top), (left, right, source_left) = spans
    content = image.crop((source_left, source_top, source_left + right - left, source_top + bottom - top))
    box = (top, bottom, left, right)
    if content.size == (crop_size, crop_size):
        return content, box
    crop = Image.new(image.mode, (crop_size, crop_size), fill)
    crop.paste(content, (left, top))
    return crop, box


def weak_view(image: Image.Image, draw: ViewDraw, crop_size: int) -> tuple[Image.Image, Box]:
    """Scale (bilinear), flip, place and crop, and perhaps blur an RGB image; return crop and box."""
    crop, box = place_and_crop(
        _scaled(image, draw, Image.Resampling.BILINEAR), crop_size, draw.pad, draw.window
    )
    if draw.blur_radius is not None:
        crop = crop.filter(ImageFilter.GaussianBlur(draw.blur_radius))
    return crop, box


def mask_view(mask: Tensor, draw: ViewDraw, crop_size: int, fill: int) -> Tensor:
    """A map `[H, W]` uint8 in the views' geometry, `[S, S]`: nearest pixels, `fill` outside the image."""
    scaled = _scaled(Image.fromarray(mask.numpy()), draw, Image.Resampling.NEAREST)
    crop = place_and_crop(scaled, crop_size, draw.pad, draw.window, fill)[0]
    return torch.from_numpy(np.array(crop, dtype=np.uint8))


def _scaled(image: Image.Image, draw: ViewDraw, resample: Image.Resampling) -> Image.Image:
    scaled = image.resize((draw.width, draw.height), resample)
    return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.flip else scaled


def strong_view(weak: Image.Image, operation: str, magnitude: int) -> Image.Image:
    """Apply one of the `COLOUR_OPERATIONS`, of magnitude 1..9, to the weak view."""
    return COLOUR_OPERATIONS[operation](weak, magnitude)


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


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image's pixels as `[3, H, W]` uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8).transpose(2, 0, 1).copy())


def normalise(images: Tensor) -> Tensor:
    """Return uint8 `[..., 3, H, W]` as float32 with ImageNet mean and standard deviation removed."""
    if images.dim() < 3 or images.shape[-3] != 3:
        raise DataError(f"images are [..., 3, H, W]; got {list(images.shape)}")
    # Made on the images' device: a list copied to a GPU would make every step wait for the device.
    mean, std = (
        torch.stack([torch.full((1, 1), value, device=images.device) for value in values])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return images.to(torch.float32).div(255.0).sub(mean).div(std)
