"""Segmentations in COCO's words: one annotation per picture and class, its pixels run-length encoded.

The file has COCO's `images`, `annotations` and `categories`; `pycocotools.coco.COCO` opens it, and the
annotations with their `score` are also what `COCO.loadRes` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cosa_dist.inference.segmentation import Segmentation


def annotations_of(made: Segmentation) -> list[dict[str, Any]]:
    """The annotations of one picture, still without ids: `category_id` 1..C, RLE, area, box, score."""
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


def decode_rle(segmentation: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The pixels `[H, W]` (0 or 1) of an annotation's `segmentation`."""
    encoded = {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
    pixels: NDArray[np.uint8] = coco_mask.decode(encoded)
    return pixels


def coco_file(
    pictures: Iterable[tuple[str, int, int, Sequence[Mapping[str, Any]]]], class_names: Sequence[str]
) -> dict[str, Any]:
    """The whole file's content from (file name, width, height, annotations) of each picture."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, width, height, found) in enumerate(pictures, start=1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
