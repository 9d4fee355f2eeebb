"""COCO's `instances_*.json`: read once into a small index; masks are drawn one by one, when they are read.

How instances become one mask of class ids (ours; the releases of the field differ in it):

- an object is painted with its class id; where objects overlap, the smaller one (by painted area) is
  on top, of equal ones the one with the higher annotation id;
- a crowd region, which outlines many things at once and loosely, is 255 (ignored) where no object lies.

Tags are the classes of all annotations of the image, crowd regions included, since their class is to
be seen. An image without any annotation has no tag; those left out, 82,081 training and 40,137
validation images of the 2014 release remain, the numbers of the published results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from cosa_dist.data.catalog import COCO_CLASSES, IGNORE
from cosa_dist.data.decode import MAX_PIXELS, encode_mask
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.source_record import Entry, File, Rejection, SourceRecord, unsafe_id, unsafe_name


class _Instance(NamedTuple):
    """One annotation as it waits in the index; `outline` is its segmentation as JSON."""

    image: int
    id: int
    category: int
    crowd: bool
    outline: bytes


@dataclass(frozen=True, slots=True)
class CocoMask:
    """The mask of one image: its size and its instances as (class id, crowd, outline as JSON)."""

    where: str
    width: int
    height: int
    instances: tuple[tuple[int, bool, bytes], ...]

    def read(self) -> bytes:
        """Draw the mask as a PNG; raises `RecordError` if an outline is damaged."""
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise RecordError(f"image is said to have {self.width}x{self.height} pixels; mend the JSON")
        try:
            return encode_mask(self._drawn())
        except Exception as error:  # pycocotools raises many kinds on damaged outlines
            raise RecordError("an outline of the annotations cannot be drawn; mend the JSON") from error

    def identity(self) -> str:
        """All that the mask is drawn from."""
        return repr(self)

    def _drawn(self) -> NDArray[np.uint8]:
        """Return the mask `[H, W]`: crowd regions first, then objects from large to small."""
        ids = np.zeros((self.height, self.width), dtype=np.uint8, order="F")  # the order of the codes
        objects = []
        for class_id, crowd, outline in self.instances:
            region = self._region(json.loads(outline))
            if crowd:
                np.copyto(ids, IGNORE, where=region)
            else:
                objects.append((class_id, region))
        for class_id, region in sorted(objects, key=lambda item: -np.count_nonzero(item[1])):
            np.copyto(ids, class_id, where=region)
        return ids

    def _region(self, outline: Any) -> NDArray[np.bool_]:
        """Return the pixels `[H, W]` of polygons, or of a run-length code (a list or a string)."""
        if isinstance(outline, list):
            polygons = [polygon for polygon in outline if len(polygon) >= 6]  # less has no area
            if not polygons:
                return np.zeros((self.height, self.width), dtype=np.bool_, order="F")
            codes = rle_masks.merge(rle_masks.frPyObjects(polygons, self.height, self.width))
        elif outline["size"] != [self.height, self.width]:
            raise ValueError("the code is for another size")
        elif isinstance(outline["counts"], list):
            if sum(outline["counts"]) != self.width * self.height or min(outline["counts"]) < 0:
                raise ValueError("the code is for another size")
            codes = rle_masks.frPyObjects(outline, self.height, self.width)
        else:
            codes = outline
        region: NDArray[np.bool_] = rle_masks.decode(codes).view(np.bool_)
        return region


def annotated_records(path: Path, images: Path) -> Iterator[Entry]:
    """Yield the record of each image of an `instances_*.json`, in the order of the image ids.

    Args:
        path: the JSON file.
        images: the folder that its `file_name`s lie in.

    Raises:
        DataError: the file is absent, not JSON, or not COCO's with its 80 categories.
    """
    content = _load(path)
    class_ids = _class_ids(path, content["categories"])
    by_image: dict[int, list[_Instance]] = {}
    for instance in content.pop("annotations"):
        if not isinstance(instance, _Instance):
            raise DataError(f"{path}: an annotation is not COCO's (an id or its segmentation is missing)")
        by_image.setdefault(instance.image, []).append(instance)
    for image in sorted(content["images"], key=lambda image: image["id"]):
        instances = sorted(by_image.pop(image["id"], ()), key=lambda instance: instance.id)
        yield _record(path, images, image, instances, class_ids)


def _record(
    path: Path, images: Path, image: dict[str, Any], instances: list[_Instance], class_ids: dict[int, int]
) -> Entry:
    """Return the record of one image, or why it cannot be named."""
    name = str(image["file_name"])
    record_id = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    where = f"{path.name}, image {image['id']}"
    reason = unsafe_name(name) or unsafe_id(record_id)
    if reason is None and any(instance.category not in class_ids for instance in instances):
        reason = "an annotation names a category that is not in the JSON's list; mend the JSON"
    if reason is not None:
        return Rejection(record_id, reason, where)
    drawn = tuple((class_ids[item.category], item.crowd, item.outline) for item in instances)
    tags = tuple(sorted({class_id - 1 for class_id, _, _ in drawn}))
    mask = CocoMask(where, int(image["width"]), int(image["height"]), drawn)
    return SourceRecord(record_id, File(images, name), mask, tags)


def _load(path: Path) -> dict[str, Any]:
    """Return the JSON's content, annotations already made small while it was read."""
    try:
        with path.open(encoding="utf-8") as opened:
            content = json.load(opened, object_hook=_made_small)
    except FileNotFoundError as error:
        raise DataError(
            f"no annotations {path}; --annotations names the folder of COCO's JSON files"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); get the file again") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path} is not an instances file of COCO: it has no list '{part}'")
    keys = ("id", "file_name", "width", "height")
    if any(not isinstance(image, dict) or set(keys) - set(image) for image in content["images"]):
        raise DataError(f"{path}: an image lacks one of {', '.join(keys)}; get the file again")
    return content


def _made_small(item: dict[str, Any]) -> Any:
    """Return what is kept of an object of the JSON; annotations with outlines are most of the file."""
    if "segmentation" in item and {"id", "image_id", "category_id"} <= set(item):
        outline = json.dumps(item["segmentation"], separators=(",", ":")).encode()
        crowd = bool(item.get("iscrowd", 0))
        return _Instance(item["image_id"], item["id"], item["category_id"], crowd, outline)
    if "file_name" in item:
        return {key: item[key] for key in ("id", "file_name", "width", "height") if key in item}
    return item


def _class_ids(path: Path, categories: list[Any]) -> dict[int, int]:
    """Return class ids 1..80 by category id; raises `DataError` if they are not COCO's 80."""
    try:
        names = {int(category["id"]): str(category["name"]) for category in categories}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a category has no id or no name; get the file again") from error
    ordered = sorted(names)
    if tuple(names[category] for category in ordered) != COCO_CLASSES:
        raise DataError(
            f"{path} has {len(names)} categories that are not COCO's 80; for another data set, write masks "
            "and use the source 'table' or 'folder'"
        )
    return {category: number for number, category in enumerate(ordered, start=1)}
