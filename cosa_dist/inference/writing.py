"""Writes what a prediction says of pictures; each file appears whole or not at all.

    OUT/masks/TREE/NAME.png               palette PNG of class ids, 0 background (VOC's colours)
    OUT/overlays/TREE/NAME.jpg            the picture with the classes laid over it
    OUT/probabilities/TREE/NAME.npz       `probabilities` [C + 1, H, W] float16, `class_names`
    OUT/segmentations.json                COCO's annotations with run-length encoded pixels (RLE)
    OUT/voc_server.tgz                    the archive that the VOC evaluation server takes

Masks and overlays have the pixels of the picture as they are stored, and its EXIF orientation: viewers turn
them like the picture. Nothing is written outside the output folder, wherever a name or a link in it may lead.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from cosa_dist.atomic import atomic_file
from cosa_dist.data.catalog import VOC_CLASSES, voc_colour_map
from cosa_dist.data.decode import ORIENTATION
from cosa_dist.data.errors import DataError
from cosa_dist.inference.segmentation import Segmentation

MASKS, OVERLAYS, PROBABILITIES, RLE = "masks", "overlays", "probabilities", "rle"
OUTPUTS = (MASKS, OVERLAYS, PROBABILITIES, RLE)
ARCHIVE = "voc_server.tgz"
OPACITY = 0.55
PALETTE = np.array(voc_colour_map(), dtype=np.uint8)
JPEG_SIDE_LIMIT = 65_500  # longest side that a JPEG can have; a longer overlay is scaled down to it
VOC_IMAGE_ID = re.compile(r"\d{4}_\d{6}")


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
    """Write the chosen files of one picture `[H, W, 3]` below `out`; `rle` writes no file of its own here.

    `name` is a relative path without ending; an EXIF orientation (1..8) is written where it is not 1. Raises
    WriteError if the disk is full or cannot be written to, or a link leads out of `out`.
    """
    options: dict[str, Any] = {}
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    if MASKS in outputs:
        mask = palette_mask(made.classes)
        write_file(out, f"{MASKS}/{name}.png", lambda file: mask.save(file, format="PNG", **options))
    if OVERLAYS in outputs:
        laid = overlay(image, made.classes)
        options["quality"] = 90
        write_file(out, f"{OVERLAYS}/{name}.jpg", lambda file: laid.save(file, format="JPEG", **options))
    if PROBABILITIES in outputs and made.probabilities is not None:
        arrays: dict[str, Any] = {
            "probabilities": made.probabilities,
            "class_names": np.array(["background", *class_names]),
        }
        write_file(out, f"{PROBABILITIES}/{name}.npz", lambda file: np.savez_compressed(file, **arrays))


def palette_mask(classes: NDArray[np.uint8]) -> Image.Image:
    """Class ids `[H, W]` as a palette picture in VOC's colours; the ids are the stored values."""
    mask = Image.fromarray(classes).convert("P")
    mask.putpalette(PALETTE.tobytes())
    return mask


def overlay(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Image.Image:
    """Lay the classes' colours over a picture `[H, W, 3]`; the background stays clear."""
    colours = Image.fromarray(PALETTE[classes])
    opacity = Image.fromarray(np.where(classes == 0, 0, int(255 * OPACITY)).astype(np.uint8))
    laid = Image.composite(colours, Image.fromarray(image), opacity)
    if max(laid.size) > JPEG_SIDE_LIMIT:
        laid.thumbnail((JPEG_SIDE_LIMIT, JPEG_SIDE_LIMIT))
    return laid


def annotations_of(made: Segmentation) -> list[dict[str, Any]]:
    """COCO's annotations of one picture, one a class, still without ids; `COCO.loadRes` takes them too."""
    found = []
    for index, score in sorted(made.confidence.items()):
        if index == 0:
            continue
        encoded = coco_mask.encode(np.asfortranarray(made.classes == index, dtype=np.uint8))
        found.append(
            {
                "category_id": index,
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
                "area": int(coco_mask.area(encoded)),
                "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
                "iscrowd": 0,
                "score": round(score, 6),
            }
        )
    return found


def coco_file(
    pictures: Iterable[tuple[str, int, int, Sequence[Mapping[str, Any]]]], class_names: Sequence[str]
) -> dict[str, Any]:
    """The content of COCO's file from (file name, width, height, annotations) of each picture."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, width, height, found) in enumerate(pictures, start=1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def check_voc(class_names: Sequence[str], names: Sequence[str]) -> None:
    """Refuse classes of a network, or names of pictures, that the VOC server could not judge."""
    if tuple(class_names) != VOC_CLASSES:
        raise DataError("--voc-server: the network was not trained on VOC's 20 classes in VOC's order")
    seen: set[str] = set()
    for name in names:
        image_id = name.rpartition("/")[2]
        if not VOC_IMAGE_ID.fullmatch(image_id):
            raise DataError(f"--voc-server: {name} is no VOC image id such as 2008_000006")
        if image_id in seen:
            raise DataError(f"--voc-server: image {image_id} occurs twice")
        seen.add(image_id)


def write_archive(out: Path, names: Sequence[str], competition: str) -> Path:
    """Pack these pictures' masks for the competition comp5 or comp6; equal masks give equal archives."""
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"

    def write(file: IO[bytes]) -> None:
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        with packed, tarfile.open(fileobj=packed, mode="w") as archive:
            for name in sorted(names, key=lambda name: name.rpartition("/")[2]):
                data = (out / MASKS / f"{name}.png").read_bytes()
                entry = tarfile.TarInfo(f"{folder}/{name.rpartition('/')[2]}.png")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    return write_file(out, ARCHIVE, write)


def write_file(out: Path, name: str, write: Callable[[IO[bytes]], object]) -> Path:
    """Write `out/name` atomically; folders are made as needed; WriteError as in `write_outputs`."""
    path = out / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(out.resolve()):
            raise WriteError(f"{path.parent} is a link that leads out of {out}; remove it")
        with atomic_file(path) as working, working.open("wb") as file:
            write(file)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def out_folder(out: Path) -> Path:
    """Make the output folder, try whether it can be written to, and return its absolute path."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}; give a folder that can be written to") from None
    return out.resolve()
