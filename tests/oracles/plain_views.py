"""Both views as the released code makes them: the whole image is scaled, and Pillow does all of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cosa_dist.data.reading.views import ViewDraw


def plain_weak_view(image: Image.Image, draw: ViewDraw, crop_size: int) -> Image.Image:
    """Scale, flip, put on a canvas of zeros, cut, and perhaps blur."""
    scaled = image.resize((draw.width, draw.height), Image.Resampling.BILINEAR)
    if draw.flip:
        scaled = ImageOps.mirror(scaled)
    canvas = Image.new("RGB", (max(crop_size, draw.width), max(crop_size, draw.height)))
    canvas.paste(scaled, draw.pad[::-1])
    top, left = draw.window
    crop = canvas.crop((left, top, left + crop_size, top + crop_size))
    return crop if draw.blur_radius is None else crop.filter(ImageFilter.GaussianBlur(draw.blur_radius))


def plain_strong_view(weak: Image.Image, operation: str, magnitude: int) -> Image.Image:
    """One colour operation."""
    factor = magnitude * 1.8 / 10 + 0.1
    match operation:
        case "auto_contrast":
            return ImageOps.autocontrast(weak)
        case "equalise":
            return ImageOps.equalize(weak)
        case "solarise":
            return ImageOps.solarize(weak, int(magnitude * 25.6))
        case "posterise":
            return ImageOps.posterize(weak, 4 - int(magnitude * 0.4))
        case "identity":
            return weak
    names = {"colour": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
    return getattr(ImageEnhance, names[operation])(weak).enhance(factor)


def planes(image: Image.Image) -> NDArray[np.uint8]:
    """`[3, H, W]` uint8."""
    return np.array(image).transpose(2, 0, 1)
