"""COCO's files in small: twelve by ten pixels a picture, and annotations by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosa_dist.data.catalog import COCO_CLASSES
from cosa_dist.data.decode import decode_mask
from cosa_dist.data.sources.coco_json import annotated_source
from cosa_dist.data.sources.coco_outline import CocoMask
from cosa_dist.data.sources.record import Entry, Notify, SourceOptions, SourceRecord, ignore_notes

# COCO's category ids run from 1 to 90; these ten are not used.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [number for number in range(1, 91) if number not in UNUSED]


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    """The polygon around the pixels left..right-1, top..bottom-1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number: int, image: int, category: int, outline: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": outline,
        "iscrowd": crowd,
        "area": 1.0,
        "bbox": [0, 0, 1, 1],
    }


def write_coco(root: Path, annotations: list[dict[str, Any]], images: Any = 3) -> Path:
    """COCO with the given annotations and so many pictures of 12x10 pixels, or the given image entries."""
    (root / "val2014").mkdir(parents=True, exist_ok=True)
    listed = images if isinstance(images, list) else []
    for number in range(0 if listed else images, 0, -1):
        name = f"COCO_val2014_{number:012d}.jpg"
        Image.new("RGB", (12, 10), (number, 90, 9)).save(root / "val2014" / name)
        listed.append({"id": number, "file_name": name, "width": 12, "height": 10, "license": 1})
    content = {
        "info": {"year": 2014},
        "images": listed,
        "annotations": annotations,
        # The file's order is not the order of the ids.
        "categories": [
            {"supercategory": "x", "id": number, "name": name}
            for number, name in sorted(zip(CATEGORY_IDS, COCO_CLASSES, strict=True), key=lambda pair: pair[1])
        ],
    }
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    return folder


SQUARE = rectangle(1, 1, 5, 5)


def coco_annotated(
    root: Path, split: str, annotations: Path, notify: Notify = ignore_notes
) -> Iterable[Entry]:
    """The entries of one split by its annotations."""
    return annotated_source(root, [split], annotations, SourceOptions(notify=notify))[1][split]


def entries(
    root: Path, annotations: list[dict[str, Any]], images: Any = 3, tell: Notify = ignore_notes
) -> list[Entry]:
    return list(coco_annotated(root, "val", write_coco(root, annotations, images), tell))


def drawn(entry: Entry) -> np.ndarray:
    assert isinstance(entry, SourceRecord)
    assert isinstance(entry.mask, CocoMask)
    return decode_mask(entry.mask.read())
