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
from typing import Any, NamedTuple

from PIL import Image

from cosa_dist.data.catalog import COCO, COCO_CLASSES, DatasetInfo, is_background, renamed
from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.sources.coco_outline import CocoMask, Code, Id, Outline, as_id, as_length, as_outline
from cosa_dist.data.sources.devkits import check_coco_split, existing_folder
from cosa_dist.data.sources.record import (
    Entry,
    File,
    SourceOptions,
    SourceRecord,
    read_text,
    unsafe_id,
    unsafe_name,
)

_YEARS = ("2014", "2017")
_PARTS = ("images", "annotations", "categories")
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_FLAGS = {"0": False, "0.0": False, "false": False, "": False, "1": True, "1.0": True, "true": True}
_LEFT_OUT = "left out"
_CROWD = (
    "their pixels are ignored (255) where no object lies (some tools write 1 for objects with holes or of "
    "several parts: then set iscrowd to 0 there)"
)


class Annotation(NamedTuple):
    """One annotation as it waits in the index; `outline` is why there is none where it cannot be used."""

    image: Id | None
    id: Id | None
    category: Id | None
    crowd: bool
    outline: Outline | str

    def named(self, file: str = "") -> str:
        """Return the annotation and its image in words."""
        own = "annotation without id" if self.id is None else f"annotation {self.id!r:.60}"
        image = "" if self.image is None else f" of image {self.image!r:.60}"
        return f"{own}{image}{f', {file!r:.200}' if file else ''}"


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
    one_file = _is_one_file(annotations)
    if one_file and len(splits) > 1:
        said = f"--annotations names one file, {annotations}, for the splits {', '.join(splits)}"
        raise DataError(f"{said}; name its split with --splits, or the folder that it lies in")
    year, entries = _release(root, annotations), dict[str, Iterable[Entry]]()
    for split in splits:
        check_coco_split(split)
        images = existing_folder(root / f"{split}{year}", f"pictures; the annotations are COCO {year}'s")
        path = annotations if one_file else annotations / f"instances_{split}{year}.json"
        entries[split] = _records(path, images, options)
    if year == _YEARS[0]:
        return COCO, entries
    said = f"this is COCO {year}, whose splits are not those of published results"
    options.note(f"{said}; named {COCO.name}{year}")
    return renamed(COCO, f"{COCO.name}{year}"), entries


def _release(root: Path, annotations: Path) -> str:
    """Return the year of the annotations, of several that of the pictures."""
    names = [annotations] if _is_one_file(annotations) else annotations.glob("instances_*.json")
    written = " ".join(path.name for path in names)
    years = [year for year in _YEARS if year in written] or _YEARS
    there = (year for year in years if any((root / f"{split}{year}").is_dir() for split in COCO.split_sizes))
    return next(there, years[0])


def _is_one_file(annotations: Path) -> bool:
    """Whether `annotations` is a file, or, where it is not there, would be one."""
    return annotations.is_file() or (annotations.suffix == ".json" and not annotations.is_dir())


def _records(path: Path, images: Path, options: SourceOptions) -> Iterator[Entry]:
    content = _load(path)
    totals = {kind: len(content[kind]) for kind in ("annotations", "images")}
    reader = _Reader(path, images, _class_ids(path, content["categories"]), totals)
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
        lost = sum(count for (*_, effect), count in self.counts.items() if effect == _LEFT_OUT)
        total = self.totals["annotations"]
        summary = f"{self.path.name}: {total - lost} of {total} annotations are used"
        return [*lines, summary] if lost else lines

    def _count(self, kind: str, reason: str, effect: str, first: str) -> None:
        self.counts[kind, reason, effect] += 1
        self.firsts.setdefault((kind, reason, effect), first)

    def _count_image(self, key: Id, name: str, reason: str, effect: str) -> None:
        self._count("images", reason, effect, f"image {key!r:.60}, {name!r:.200}")

    def records(self, content: dict[str, Any]) -> Iterator[Entry]:
        """Yield the records of all images, in the order of their ids."""
        listed: dict[Id, list[dict[str, Any]]] = {}
        for number, image in enumerate(content.pop("images"), start=1):
            key = as_id(image.get("id")) if isinstance(image, dict) else None
            if key is None:
                reason = "image has no id, so that no annotation can name it; mend the JSON"
                yield Rejection(f"image entry {number}", reason, self.path.name)
            elif image not in (same := listed.setdefault(key, [])):
                same.append(image)
        by_image = self._by_image(content.pop("annotations"), listed)
        for key in sorted(listed, key=_place):
            annotations = sorted(by_image.pop(key, ()), key=lambda annotation: _place(annotation.id))
            for image in listed[key]:
                reason = f"image id {key!r:.60} is that of {len(listed[key])} pictures; mend the JSON"
                entry = self._record(key, image, annotations) if len(listed[key]) == 1 else None
                yield entry or Rejection(_record_id(_name(image), key), reason, self._where(key))
            if len(listed[key]) > 1:
                self._leave_out(annotations, "")

    def _by_image(self, annotations: list[Any], listed: dict[Id, Any]) -> dict[Id, list[Annotation]]:
        by_image: dict[Id, list[Annotation]] = {}
        for number, item in enumerate(annotations, start=1):
            made = _annotation(item) if isinstance(item, dict) else item
            if isinstance(made, Annotation) and made.image is not None and made.image in listed:
                by_image.setdefault(made.image, []).append(made)
            else:
                first = made.named() if isinstance(made, Annotation) else "no object"
                self._count("annotations", "of no image in the list", _LEFT_OUT, f"{first} (entry {number})")
        if annotations and not by_image:
            said = f"none of the annotations is of an image in its list ({self.lines()[0]})"
            raise DataError(f"{self.path}: {said}; mend the JSON")
        return by_image

    def _leave_out(self, annotations: Iterable[Annotation], name: str) -> None:
        for item in annotations:
            self._count("annotations", "of an image that is left out", _LEFT_OUT, item.named(name))

    def _record(self, key: Id, image: dict[str, Any], annotations: list[Annotation]) -> Entry:
        written = _name(image)
        name = self._found(written)
        unknown = next((item for item in annotations if item.category not in self.class_ids), None)
        reason = unsafe_name(name) or unsafe_id(_record_id(name, 0))
        if not name:
            reason = "image has no file_name; write the picture's name into the JSON"
        elif unknown:
            reason = f"{unknown.named()} names a category that is not in the JSON's list; mend the JSON"
        if reason:
            self._leave_out(annotations, name)
            return Rejection(_record_id(name, key), reason, self._where(key))
        if name != written.replace("\\", "/"):
            effect = f"the picture of that name in {self.images.name} is taken"
            self._count_image(key, written, "a file_name with other folders", effect)
        picture = File(self.images, name)
        tags = {class_id - 1 for item in annotations if (class_id := self.class_ids[item.category])}
        mask = self._mask(key, name, annotations, self._size(key, image, picture))
        return SourceRecord(_record_id(name, key), picture, mask, tuple(sorted(tags)))

    def _mask(
        self, key: Id, name: str, annotations: list[Annotation], size: tuple[int, int] | None
    ) -> CocoMask | None:
        """Return an image's mask if its size (width, height) and all outlines are known."""
        drawn: list[tuple[int, bool, Outline]] = []
        whole = size is not None
        for item in annotations:
            class_id, outline, reasons = self.class_ids[item.category], item.outline, dict[str, str]()
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
        return CocoMask(self._where(key), *size, tuple(drawn)) if whole and size else None

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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); get the file again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
        has = f" (it has {', '.join(map(ascii, content)):.200})" if isinstance(content, dict) else ""
        said = f"it has no lists {', '.join(_PARTS)}{has}"
        raise DataError(f"{path} is not an instances file of COCO: {said}; get instances_*.json")
    if not content["images"]:
        raise DataError(f"{path} lists no images; get the file again")
    return content


def _made_small(item: dict[str, Any]) -> Any:
    """Return what is kept of an object of the JSON; annotations with outlines are most of the file."""
    if len({"image_id", "category_id", "segmentation"} & item.keys()) > 1:
        return _annotation(item)
    return {key: item[key] for key in _IMAGE_KEYS if key in item} if "file_name" in item else item


def _annotation(item: dict[str, Any]) -> Annotation:
    flag = item.get("iscrowd")
    crowd = _FLAGS.get("" if flag is None else str(flag).strip().casefold())
    outline = "iscrowd that is neither 0 nor 1" if crowd is None else as_outline(item.get("segmentation"))
    image, own, category = (as_id(item.get(key)) for key in ("image_id", "id", "category_id"))
    return Annotation(image, own, category, bool(crowd), outline)


def _class_ids(path: Path, categories: list[Any]) -> dict[Id | None, int]:
    """Return class ids by category id, by their names; raises `DataError` if they are not COCO's 80.

    A category 0 beside them, or one called background, is background: exporters add one as the root.
    """
    numbers = {name.casefold(): number for number, name in enumerate(COCO_CLASSES, start=1)}
    found: dict[Id | None, int] = {}
    foreign = []
    for category in categories:
        category = category if isinstance(category, dict) else {}
        key, name = as_id(category.get("id")), _name(category, "name")
        number = numbers.get(name.casefold(), 0)
        if key is None or not name or found.setdefault(key, number) != number:
            raise DataError(f"{path}: a category has no id, no name or two names; get the file again")
        if not number and key != 0 and not is_background(name):
            foreign.append(name)
    missing = sorted(set(numbers.values()) - set(found.values()))
    cure = "get instances_*.json; for another data set, write masks and use the source 'table' or 'folder'"
    if foreign:
        said = f"{len(found)} categories that are not COCO's 80 ({foreign[0]!r:.60} is none)"
        raise DataError(f"{path} has {said}; {cure}")
    if missing:
        lacking = f"{len(numbers) - len(missing)} of COCO's 80 categories"
        first = f"({COCO_CLASSES[missing[0] - 1]!r} is missing)"
        more = "of a subset, add the others to its list 'categories', with any ids"
        raise DataError(f"{path} lists {lacking} {first}; {more}; else {cure}")
    return found


def _name(item: dict[str, Any], key: str = "file_name") -> str:
    """Return the text of a key without outer spaces, or nothing where there is no text."""
    value = item.get(key)
    return value.strip() if isinstance(value, str) else ""


def _record_id(name: str, key: Id) -> str:
    """Return the id of a picture: its file name without folders and ending, else that of the JSON."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return stem if stem and stem.isprintable() else f"image {key!r:.60}"


def _place(key: Id | None) -> tuple[bool, bool, Id]:
    """Return a sorting key of ids: numbers, text, then none."""
    return key is None, isinstance(key, str), 0 if key is None else key
