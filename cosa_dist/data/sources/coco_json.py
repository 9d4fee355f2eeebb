"""COCO's `instances_*.json` of 2014 or 2017: read once into a small index; masks are drawn one by one.

The release of 2017 is another data set, whose splits are others. Class ids are 1..80 in the order of COCO's
category ids (which run to 90, with gaps). An object is painted with its class id; where objects overlap, the
smaller one (by painted area) is on top, of equal ones the one with the higher annotation id. A crowd region,
which outlines many things loosely, is 255 (ignored) where no object lies. This rule is ours; others' releases
differ.

Tags are the classes of all annotations of the image, crowd regions included. Without the images that have
none, 82,081 training and 40,137 validation images of 2014 remain, as in published results. A mask is there
only where every annotation of the image has an outline: the others' pixels would be background.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cosa_dist.data.catalog import COCO, COCO_CLASSES, DatasetInfo, is_background, renamed
from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.sources.coco_outline import (
    Annotation,
    CocoMask,
    Code,
    Id,
    Outline,
    as_annotation,
    as_id,
    as_length,
)
from cosa_dist.data.sources.devkits import check_coco_split, existing_folder
from cosa_dist.data.sources.options import SourceOptions
from cosa_dist.data.sources.record import Entry, File, SourceRecord, read_text, unsafe_id, unsafe_name

_YEARS = ("2014", "2017")
_IMAGE_KEYS = ("id", "file_name", "width", "height", "coco_url")
_OTHER_FILES = {
    "caption": "COCO's captions (captions_*.json)",
    "segments_info": "COCO's panoptic annotations (panoptic_*.json)",
    "keypoints": "COCO's keypoints (person_keypoints_*.json)",
    "shapes": "a labelme file of one picture",
    "_via_img_metadata": "a project of the VGG annotator (VIA)",
    "regions": "annotations of the VGG annotator (VIA)",
}
_LEFT_OUT = "left out"
_PICTURE_OUT = "left out with their pictures"
_CROWD = (
    "their pixels are ignored (255) where no object lies (some tools write 1 for objects with holes or of "
    "several parts: then set iscrowd to 0 there)"
)


def annotated_source(
    root: Path, splits: Sequence[str], annotations: Path, options: SourceOptions
) -> tuple[DatasetInfo, dict[str, Iterable[Entry]]]:
    """Open COCO by its official annotations; return the data set and its entries by split.

    `root` holds `train2014` and `val2014`, or those of 2017, which is named `coco2017`; `annotations` is the
    folder with `instances_train2014.json` and so on, or one such file. What could not be used as it is, is
    noted by reason. Raises `DataError` if a folder or file is not there, or (when the entries are read) the
    JSON is not COCO's with its 80 categories, or none of its annotations is of one of its images.
    """
    if options.classes is not None:
        raise DataError("--classes is not for --annotations, whose JSON names the categories")
    if _is_one_file(annotations) and len(splits) > 1:
        said = f"--annotations names one file, {annotations}, for the splits {', '.join(splits)}"
        raise DataError(f"{said}; name its split with --splits, or the folder that it lies in")
    year, entries = _release(root, annotations), dict[str, Iterable[Entry]]()
    for split in splits:
        check_coco_split(split)
        images = existing_folder(root / f"{split}{year}", f"pictures; the annotations are COCO {year}'s")
        entries[split] = _records(_json_of(annotations, split, year), images, options)
    if year == _YEARS[0]:
        return COCO, entries
    said = f"this is COCO {year}, whose splits are not those of published results"
    options.note(f"{said}; named {COCO.name}{year}")
    return renamed(COCO, f"{COCO.name}{year}"), entries


def _release(root: Path, annotations: Path) -> str:
    splits = COCO.split_sizes
    annotated = [y for y in _YEARS if any(_json_of(annotations, s, y).is_file() for s in splits)]
    both = [y for y in annotated if any((root / f"{s}{y}").is_dir() for s in splits)]
    return (both + annotated + [_YEARS[0]])[0]


def _json_of(annotations: Path, split: str, year: str) -> Path:
    """Return the file of a split and year, `annotations` itself where it is one, unless of another year."""
    other = any(y in annotations.name for y in _YEARS) and year not in annotations.name
    usual = annotations / f"instances_{split}{year}.json"
    return annotations if _is_one_file(annotations) and not other else usual


def _is_one_file(annotations: Path) -> bool:
    """Whether `annotations` is a file, or, where it is not there, would be one."""
    return annotations.is_file() or (annotations.suffix == ".json" and not annotations.is_dir())


def _records(path: Path, images: Path, options: SourceOptions) -> Iterator[Entry]:
    content = _load(path)
    totals = {kind: len(content[kind]) for kind in ("annotations", "images")}
    reader = _Reader(path, images, _class_ids(path, content), totals)
    yield from reader.records(content)
    for line in reader.lines():
        options.note(line)
    if not totals["annotations"]:
        options.note(f"{path.name}: it has no annotations, so that no picture gets a tag")


@dataclass(frozen=True)
class _Reader:
    """Makes records of a file's images; `class_ids` are by category id, 0 is background.

    What could not be used as it is is counted by (kind, reason, what becomes of it), and the first one named.
    """

    path: Path
    images: Path
    class_ids: dict[Id | None, int]
    totals: dict[str, int]
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    firsts: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return a line for each reason, and one that sums up the annotations if some are left out."""
        lines = [
            f"{self.path.name}: {count} of {self.totals[key[0]]} {key[0]}: {key[1]}, the first is "
            f"{self.firsts[key]}; {key[2]}"
            for key, count in self.counts.items()
        ]
        lost = sum(count for key, count in self.counts.items() if key[2] in (_LEFT_OUT, _PICTURE_OUT))
        total = self.totals["annotations"]
        summary = f"{self.path.name}: {total - lost} of {total} annotations are used"
        return [*lines, summary] if lost else lines

    def _count(self, kind: str, reason: str, effect: str, first: str) -> None:
        self.counts[kind, reason, effect] += 1
        self.firsts.setdefault((kind, reason, effect), first)

    def _count_image(self, key: Id, name: str, reason: str, effect: str) -> None:
        self._count("images", reason, effect, f"image {key!r:.60}, {name!r:.200}")

    def _leave_out(self, items: Iterable[Annotation], reason: str, name: str) -> None:
        for item in items:
            self._count("annotations", reason, _PICTURE_OUT, item.named(name))

    def records(self, content: dict[str, Any]) -> Iterator[Entry]:
        """Yield the records of all images, in the order of their ids."""
        listed: dict[Id, dict[str, dict[str, Any]]] = {}
        for number, image in enumerate(content.pop("images"), start=1):
            key = as_id(image.get("id")) if isinstance(image, dict) else None
            if key is None:
                reason = "image has no id, so that no annotation can name it; mend the JSON"
                yield Rejection(f"image entry {number}", reason, self.path.name)
            elif (
                listed.setdefault(key, {}).setdefault(name := _text(image.get("file_name")), image)
                is not image
            ):
                self._count_image(key, name, "listed twice", "the first entry counts")
        by_image = self._by_image(content.pop("annotations"), listed)
        for key in sorted(listed, key=_place):
            annotations = sorted(by_image.pop(key, ()), key=lambda annotation: _place(annotation.id))
            yield from self._entries(key, listed[key], annotations)

    def _by_image(
        self, annotations: list[Any], listed: dict[Id, dict[str, dict[str, Any]]]
    ) -> dict[Id, list[Annotation]]:
        other_ids = self._other_ids(listed)
        by_image: dict[Id, list[Annotation]] = {}
        for number, item in enumerate(annotations, start=1):
            made = as_annotation(item) if isinstance(item, dict) else item
            reason, first = "an image that is not in the list", f"entry {number}"
            if not isinstance(made, Annotation):
                reason = "no object of keys and values"
            elif made.image is None:
                reason, first = "no image_id", f"{made.named()} ({first})"
            elif (image := other_ids.get(made.image, made.image)) in listed:
                by_image.setdefault(image, []).append(made)
                continue
            else:
                first = made.named()
            self._count("annotations", reason, _LEFT_OUT, first)
        if annotations and not by_image:
            said = f"none of the annotations is of an image in its list ({'; '.join(self.lines()[:-1])})"
            raise DataError(f"{self.path}: {said}; mend the JSON")
        return by_image

    def _other_ids(self, listed: dict[Id, dict[str, dict[str, Any]]]) -> dict[Id, Id]:
        """Take pictures listed under a second id off `listed`; return the first ids by the second ones."""
        kept: dict[str, Id] = {}
        others: dict[Id, Id] = {}
        for key, (name, *more) in listed.items():
            if name and not more and (first := kept.setdefault(name, key)) != key:
                others[key] = first
                effect = "the annotations of both are united"
                self._count_image(key, name, "a picture under a second id", effect)
        for key in others:
            del listed[key]
        return others

    def _entries(
        self, key: Id, listed: dict[str, dict[str, Any]], annotations: list[Annotation]
    ) -> Iterator[Entry]:
        """Yield the record of an image id; if several pictures have it, all of them are left out."""
        if len(listed) == 1:
            ((written, image),) = listed.items()
            yield self._record(key, written, image, annotations)
            return
        self._leave_out(annotations, "an image id of several pictures", "")
        for name in listed:
            reason = f"image id {key!r:.60} is that of {len(listed)} pictures; mend the JSON"
            yield Rejection(_record_id(name, key), reason, self._where(key))

    def _record(self, key: Id, written: str, image: dict[str, Any], annotations: list[Annotation]) -> Entry:
        name = self._found(written)
        unknown = [item for item in annotations if item.category not in self.class_ids]
        reason = unsafe_name(name) or unsafe_id(_record_id(name, 0))
        if not name:
            only = ", only an address (coco_url)" if image.get("coco_url") else ""
            reason = f"image has no file_name{only}; write the picture's name into the JSON"
        elif unknown:
            reason = "an annotation names a category that is not in the JSON's list; mend the JSON"
        if reason:
            self._leave_out(unknown, "no category of the list", name)
            known = (item for item in annotations if item.category in self.class_ids)
            self._leave_out(known, "an image that is left out", name)
            return Rejection(_record_id(name, key), reason, self._where(key))
        if name != written.replace("\\", "/"):
            effect = f"the picture of that name in {self.images.name} is taken"
            self._count_image(key, written, "a file_name with other folders", effect)
        picture = File(self.images, name)
        tags, mask = self._tags_and_mask(key, name, annotations, self._size(key, image, picture))
        return SourceRecord(_record_id(name, key), picture, mask, tags)

    def _tags_and_mask(
        self, key: Id, name: str, annotations: list[Annotation], size: tuple[int, int] | None
    ) -> tuple[tuple[int, ...], CocoMask | None]:
        """Return an image's tags, and its mask if its size (width, height) and all outlines are known."""
        tags = set()
        drawn: list[tuple[int, bool, Outline]] = []
        whole = True
        for item in annotations:
            class_id, outline, reasons = self.class_ids[item.category], item.outline, dict[str, str]()
            if class_id:
                tags.add(class_id - 1)
            if size and any(isinstance(part, Code) and part.size != size[::-1] for part in outline):
                outline = "a run-length code for another size than the image's"
            if not class_id:
                reasons["background as category"] = _LEFT_OUT
            elif isinstance(outline, str):
                reasons[outline] = "their pictures get tags but no mask"
                whole = False
            else:
                drawn.append((class_id, item.crowd, outline))
                if b"" in outline:
                    reasons["some polygons of fewer than three points"] = "those polygons are left out"
                if item.crowd:
                    reasons["crowds (iscrowd 1)"] = _CROWD
            for reason, effect in reasons.items():
                self._count("annotations", reason, effect, item.named(name))
        mask = CocoMask(self._where(key), *size, tuple(drawn)) if whole and size else None
        return tuple(sorted(tags)), mask

    def _size(self, key: Id, image: dict[str, Any], picture: File) -> tuple[int, int] | None:
        width, height = as_length(image.get("width")), as_length(image.get("height"))
        if width and height:
            return width, height
        self._count_image(key, picture.name, "no width or no height", "taken from the pictures")
        try:
            with Image.open(io.BytesIO(picture.read())) as opened:
                return opened.size
        except Exception:  # PIL raises many kinds; the picture is decoded and reported when it is checked
            return None

    def _found(self, written: str) -> str:
        """Return a file's name in the folder of pictures: of a longer path, the part that there is."""
        name = written.replace("\\", "/")
        parts = name.split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)) if len(parts) > 1)
        return next((t for t in tails if unsafe_name(t) is None and File(self.images, t).exists()), name)

    def _where(self, key: Id) -> str:
        return f"{self.path.name}, image {key!r:.60}"


def _load(path: Path) -> dict[str, Any]:
    """Return the JSON's content, annotations already made small while it was read."""
    there = ", ".join(sorted(file.name for file in path.parent.glob("*.json"))[:9]) or "no JSON file"
    cure = f"; --annotations names the folder of COCO's JSON files, or one of them (there: {there})"
    text = read_text(path, "annotations", cure)
    try:
        content = json.loads(text, object_hook=_made_small)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply for a JSON of COCO; get the file again") from error
    except ValueError as error:
        reason = error if isinstance(error, json.JSONDecodeError) else "a number of too many digits"
        lines = "it holds several values, as JSON lines do, and COCO's is one object"
        cure = lines if "Extra data" in str(reason) else "get the file again"
        raise DataError(f"{path} is not JSON ({reason}); {cure}") from error
    said = f"{path} is not an instances file of COCO"
    if not isinstance(content, dict):
        kind = ", but a list, as of detections" if isinstance(content, list) else ""
        parts = "no object with images, annotations and categories"
        raise DataError(f"{said}: {parts}{kind}; get instances_*.json")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            kind = _other_file(content) or f"it has {', '.join(map(ascii, content)) or 'nothing'}"
            raise DataError(f"{said}: it has no list '{part}' ({kind:.200}); get instances_*.json")
    if not content["images"]:
        raise DataError(f"{path} lists no images; get the file again")
    return content


def _other_file(content: dict[str, Any]) -> str:
    firsts = [next(iter(part), None) for part in content.values() if isinstance(part, list)]
    firsts += [content, next(iter(content.values()), None)]
    keys = {key for first in firsts if isinstance(first, dict) for key in first}
    return next((f"this is {what}" for key, what in _OTHER_FILES.items() if key in keys), "")


def _made_small(item: dict[str, Any]) -> Any:
    """Return what is kept of an object of the JSON; annotations with outlines are most of the file."""
    if len({"image_id", "category_id", "segmentation"} & item.keys()) > 1:
        return as_annotation(item)
    if "file_name" in item and "segments_info" not in item:
        return {key: item[key] for key in _IMAGE_KEYS if key in item}
    return item


def _class_ids(path: Path, content: dict[str, Any]) -> dict[Id | None, int]:
    """Return class ids by category id, by their names; raises `DataError` if they are not COCO's 80.

    A category 0 beside them, or one called background, is background: exporters add one as the root.
    """
    numbers = {name.casefold(): number for number, name in enumerate(COCO_CLASSES, start=1)}
    found: dict[Id | None, int] = {}
    foreign = []
    for category in content["categories"]:
        category = category if isinstance(category, dict) else {}
        key, name = as_id(category.get("id")), _text(category.get("name"))
        if key is None or not name:
            raise DataError(f"{path}: a category has no id or no name; get the file again")
        number = numbers.get(name.casefold(), 0)
        if not number and key != 0 and not is_background(name):
            foreign.append(name)
        if found.setdefault(key, number) != number:
            raise DataError(f"{path}: category id {key!r:.60} has two names; get the file again")
    missing = sorted(set(numbers.values()) - set(found.values()))
    kind = _other_file(content)
    if found and not kind and all(isinstance(key, int) and key > 91 for key in found):
        kind = "this is COCO's stuff annotations (stuff_*.json)"
    other = "for another data set, write masks and use the source 'table' or 'folder'"
    if foreign or (missing and kind):
        said = f"{len(found)} categories that are not COCO's 80 ({kind or f'{foreign[0]!r:.60} is none'})"
        raise DataError(f"{path} has {said}; {'get instances_*.json' if kind else other}")
    if missing:
        lacking = f"{len(numbers) - len(missing)} of COCO's 80 categories"
        first = f"({COCO_CLASSES[missing[0] - 1]!r} is missing)"
        cure = "add the others to its list 'categories', with any ids"
        raise DataError(f"{path} lists {lacking} {first}; {cure}, or, {other}")
    return found


def _text(value: Any) -> str:
    """Return text without outer spaces, or nothing for what is no text."""
    return value.strip() if isinstance(value, str) else ""


def _record_id(name: str, key: Id) -> str:
    """Return the id of a picture: its file name without folders and ending, else that of the JSON."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return stem if stem and stem.isprintable() else f"image {key!r:.60}"


def _place(key: Id | None) -> tuple[bool, bool, Id]:
    """Return a sorting key of ids: numbers, text, then none."""
    return key is None, isinstance(key, str), 0 if key is None else key
