"""Writes what a prediction says of one picture: mask, overlay, probabilities. Each file whole or not at all.

    OUT/masks/TREE/NAME.png               palette PNG of class ids, 0 background (VOC's colours)
    OUT/overlays/TREE/NAME.jpg            the picture with the classes laid over it
    OUT/probabilities/TREE/NAME.npz       `probabilities` [C + 1, H, W] float16, `class_names`

Masks and overlays have the pixels of the picture as they are stored, and its EXIF orientation: viewers turn
them like the picture. Nothing is written outside the output folder, wherever a name or a link in it may lead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.decode import ORIENTATION
from cosa_dist.data.errors import DataError
from cosa_dist.inference.segmentation import Segmentation

MASKS, OVERLAYS, PROBABILITIES, RLE = "masks", "overlays", "probabilities", "rle"
OUTPUTS = (MASKS, OVERLAYS, PROBABILITIES, RLE)
OPACITY = 0.55
JPEG_SIDE_LIMIT = 65_500
"""Longest side that a JPEG can have; a longer overlay is scaled down to it."""


class WriteError(RuntimeError):
    """The output folder cannot be written to; there is no use in going on."""


def write_outputs(
    out: Path,
    name: str,
    image: NDArray[np.uint8],
    made: Segmentation,
    class_names: Sequence[str],
    outputs: Sequence[str],
    orientation: int = 1,
) -> None:
    """Write the chosen files of one picture.

    Args:
        out: output folder.
        name: the picture's name, a relative path without ending.
        image: `[H, W, 3]` pixels.
        made: its segmentation.
        class_names: the C foreground classes.
        outputs: some of `OUTPUTS`; `rle` writes no file of its own here.
        orientation: the picture's EXIF orientation, 1..8; written where it is not 1.

    Raises:
        WriteError: the disk is full or cannot be written to, or a link leads out of `out`.
    """
    note: dict[str, Image.Exif] = {}
    if orientation != 1:
        note["exif"] = Image.Exif()
        note["exif"][ORIENTATION] = orientation
    if MASKS in outputs:
        mask = palette_mask(made.classes)
        write_file(out, f"{MASKS}/{name}.png", lambda file: mask.save(file, format="PNG", **note))
    if OVERLAYS in outputs:
        laid = overlay(image, made.classes)
        write_file(
            out, f"{OVERLAYS}/{name}.jpg", lambda file: laid.save(file, format="JPEG", quality=90, **note)
        )
    if PROBABILITIES in outputs and made.probabilities is not None:
        values, names = made.probabilities, np.array(["background", *class_names])

        def save(file: IO[bytes]) -> None:
            np.savez_compressed(file, probabilities=values, class_names=names)

        write_file(out, f"{PROBABILITIES}/{name}.npz", save)


def palette_mask(classes: NDArray[np.uint8]) -> Image.Image:
    """Class ids `[H, W]` as a palette picture in VOC's colours; the ids are the stored values."""
    mask = Image.fromarray(classes).convert("P")
    mask.putpalette(np.array(voc_colour_map(), dtype=np.uint8).tobytes())
    return mask


def overlay(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Image.Image:
    """Lay the classes' colours over a picture `[H, W, 3]`; the background stays clear."""
    colours = Image.fromarray(np.array(voc_colour_map(), dtype=np.uint8)[classes])
    opacity = Image.fromarray(np.where(classes == 0, 0, int(255 * OPACITY)).astype(np.uint8))
    laid = Image.composite(colours, Image.fromarray(image), opacity)
    if max(laid.size) > JPEG_SIDE_LIMIT:
        laid.thumbnail((JPEG_SIDE_LIMIT, JPEG_SIDE_LIMIT))
    return laid


def write_file(out: Path, name: str, write: Callable[[IO[bytes]], object]) -> Path:
    """Write `out/name` under a hidden name and rename it; folders are made as needed.

    Raises:
        WriteError: see `write_outputs`.
    """
    path = out / name
    part = path.parent / f".part-{uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(out.resolve()):
            raise WriteError(f"{path.parent} is a link that leads out of {out}; remove it")
        with part.open("wb") as file:
            write(file)
        part.replace(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def out_folder(out: Path) -> Path:
    """Make the output folder and try it; return its absolute path.

    Raises:
        DataError: it is a file, or cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".part-{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}; give a folder that can be written to") from None
    return out.resolve()
