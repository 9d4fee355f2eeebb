"""COCO's JSON as exporters write it: read as it is meant, or counted by reason, the first one named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosa_dist.data.catalog import COCO_CLASSES
from cosa_dist.data.errors import Rejection
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.record import File, SourceRecord
from tests.bad_input.outcome import call
from tests.data.coco_files import (
    CATEGORY_IDS,
    SQUARE,
    annotation,
    coco_annotated,
    drawn,
    entries,
    rectangle,
    write_coco,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

POINTS = [[1, 1], [5, 1], [5, 5], [1, 5]]
# Column by column from the top left: 20 pixels are not, 10 are (one column), 90 are not.
COLUMN = [20, 10, 90]
# The same by hand in COCO's text, five bits a character: 20 is 52 "d" (20 + 32) and 48 "0", since bit 4 of
# the last character is the sign; 10 is 58 ":"; 90 is 26 + 32 + 32 = "j" and 2 = "2".
TEXT = "d0:j2"


@pytest.mark.parametrize(
    ("outline", "pixels"),
    [
        (POINTS, 16),
        ([POINTS], 16),
        ([[POINTS]], 16),
        (SQUARE[0], 16),
        ([str(value) for value in SQUARE[0]], 16),
        ([[str(value) for value in SQUARE[0]]], 16),
        ([[1, "1.0", 5, 1.0, "5", 5, 1, " 5"]], 16),
        ([*SQUARE, *rectangle(6, 6, 8, 8)], 20),
        (rectangle(-5, -5, 3, 3), 9),
        (rectangle(10, 8, 99, 99), 4),
        ({"size": [10, 12], "counts": COLUMN}, 10),
        ({"size": ["10", 12.0], "counts": [str(value) for value in COLUMN]}, 10),
        ({"size": [10, 12], "counts": TEXT}, 10),
        ({"size": [10, 12], "counts": f"b'{TEXT}'"}, 10),
        ([{"size": [10, 12], "counts": TEXT}], 10),
        ([*SQUARE, {"size": [10, 12], "counts": TEXT}], 22),
    ],
)
def test_outlines_in_the_forms_of_exporters(tmp_path: Path, outline: Any, pixels: int) -> None:
    told: list[str] = []
    (made,) = entries(tmp_path, [annotation(1, 1, 1, outline)], images=1, tell=told.append)
    assert np.unique(drawn(made)).tolist() == [0, 1]
    assert (drawn(made) == 1).sum() == pixels
    assert told == []


UNREADABLE = "an outline that cannot be read as polygons or as a run-length code"


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        (None, "no outline"),
        ([], "no outline"),
        ({}, "no outline"),
        ("", "no outline"),
        ([[]], "an outline of fewer than three points"),
        ([[1, 1, 5, 5]], "an outline of fewer than three points"),
        ([[1, 1], [5, 5]], "an outline of fewer than three points"),
        (
            [[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]],
            "an outline within the first pixel, as of shares of width and height",
        ),
        ({"size": [12, 10], "counts": COLUMN}, "a run-length code for another size than the image's"),
        ({"size": [10, 12], "counts": [80, 400]}, UNREADABLE),
        ({"size": [10, 12], "counts": [-40, 160]}, UNREADABLE),
        ({"size": [10, 12], "counts": [0.5, 119.5]}, UNREADABLE),
        ({"size": [10, 12]}, UNREADABLE),
        ({"counts": COLUMN}, UNREADABLE),
        ({"size": None, "counts": COLUMN}, UNREADABLE),
        ({"size": [10**9, 10**9], "counts": [10**18]}, UNREADABLE),
        ({"size": [10, 12], "counts": "zzzzzzzzzzzzz"}, UNREADABLE),
        ({"size": [10, 12], "counts": TEXT[:-1]}, UNREADABLE),
        ({"size": [10, 12], "counts": None}, UNREADABLE),
        ("polygon", UNREADABLE),
        ([{"x": x, "y": y} for x, y in POINTS], UNREADABLE),
        (json.dumps(SQUARE), UNREADABLE),
        ({"size": "10, 12", "counts": COLUMN}, UNREADABLE),
        ({"size": [10, 12], "counts": "20 10 90"}, UNREADABLE),
        (7, UNREADABLE),
        ([7], UNREADABLE),
        ([["a", "b", 1, 2, 3, 4]], UNREADABLE),
        ([[1, 1, 5, 1, 5, 5, 1]], UNREADABLE),
        ([[1, 1, 5, None, 5, 5]], UNREADABLE),
        ([[1, 1, 5, float("nan"), 5, 5]], UNREADABLE),
        ([[1, 1, 5, float("inf"), 5, 5]], UNREADABLE),
        ([[1, 1, 1e9, 1, 5, 5]], UNREADABLE),
        ([[1, 1, 10**400, 1, 5, 5]], UNREADABLE),
        ([POINTS, [POINTS, POINTS]], UNREADABLE),
        ("[" * 5000, UNREADABLE),
    ],
)
def test_a_picture_with_an_unknown_outline_has_tags_and_no_mask(
    tmp_path: Path, outline: Any, reason: str
) -> None:
    told: list[str] = []
    annotations = [annotation(4, 1, 1, SQUARE), annotation(17, 1, 90, outline), annotation(5, 2, 2, SQUARE)]
    first, second = entries(tmp_path, annotations, images=2, tell=told.append)
    assert isinstance(first, SourceRecord)
    assert (first.tags, first.mask) == ((0, 79), None)
    assert (drawn(second) == 2).sum() == 16
    assert told == [
        f"instances_val2014.json: 1 of 3 annotations: {reason}, the first is annotation 17 of image 1, "
        "'COCO_val2014_000000000001.jpg'; their pictures get tags but no mask"
    ]


def test_boxes_only_are_tags(tmp_path: Path) -> None:
    told: list[str] = []
    boxes = [annotation(n, image, 3, None) for n, image in ((1, 2), (2, 1), (3, 1))]
    for box in boxes:
        del box["segmentation"]
    made = entries(tmp_path, boxes, images=2, tell=told.append)
    assert [(entry.tags, entry.mask) for entry in made if isinstance(entry, SourceRecord)] == [
        ((2,), None)
    ] * 2
    assert [line[:60] for line in told] == ["instances_val2014.json: 3 of 3 annotations: no outline, the "]


def test_a_polygon_without_area_beside_others_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    (made,) = entries(tmp_path, [annotation(1, 1, 1, [*SQUARE, [1, 1, 2, 2]])], images=1, tell=told.append)
    assert (drawn(made) == 1).sum() == 16
    assert [("1 of 1" in line, "those polygons are left out" in line) for line in told] == [(True, True)]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((flag, 1) for flag in ("0", 0.0, None, False, "false", "", "0.0", ...)),
        *((flag, 255) for flag in ("1", 1.0, True, " True ", "1.0")),
        *((flag, None) for flag in ("maybe", 2, [], 0.5, float("nan"))),
    ],
)
def test_crowd_flags(tmp_path: Path, flag: Any, value: int | None) -> None:
    told: list[str] = []
    single = annotation(1, 1, 1, SQUARE)
    if flag is ...:
        del single["iscrowd"]
    else:
        single["iscrowd"] = flag
    (made,) = entries(tmp_path, [single], images=1, tell=told.append)
    assert isinstance(made, SourceRecord)
    assert made.tags == (0,)
    if value is None:
        assert made.mask is None
        assert "iscrowd that is neither 0 nor 1, the first is annotation 1 of image 1" in told[0]
    else:
        assert np.unique(drawn(made)).tolist() == [0, value]
        assert ["crowds (iscrowd 1)" in line for line in told] == [True] * (value == 255)


def as_written(change: Any, *keys: str) -> Any:
    """Changes these values of all annotations."""

    def changed(content: dict[str, Any]) -> None:
        for item in content["annotations"]:
            for key in keys:
                item[key] = change(item[key])

    return changed


def in_image(**values: Any) -> Any:
    """Sets these values of the first image listed, which is number 2."""

    def changed(content: dict[str, Any]) -> None:
        content["images"][0] = {
            key: value for key, value in (content["images"][0] | values).items() if value is not ...
        }

    return changed


def renumbered(content: dict[str, Any]) -> None:
    """Gives the categories numbers in the order of the alphabet."""
    numbers = {name: number for number, name in enumerate(sorted(COCO_CLASSES), start=1)}
    for item in content["annotations"]:
        item["category_id"] = numbers[COCO_CLASSES[CATEGORY_IDS.index(item["category_id"])]]
    content["categories"] = [{"id": number, "name": name.title()} for name, number in numbers.items()]


SIZE = "1 of 2 images: no width or no height, the first is image 2"
FOLDERS = "1 of 2 images: a file_name with other folders, the first is image 2"
NAME = "COCO_val2014_000000000002.jpg"


@pytest.mark.parametrize(
    ("change", "told_of"),
    [
        (as_written(str, "image_id"), ""),
        (as_written(float, "image_id", "category_id", "id"), ""),
        (as_written(lambda number: f"{number:012d}", "image_id", "category_id"), ""),
        (as_written(lambda number: f" {number}.0", "image_id", "category_id"), ""),
        (lambda content: content["annotations"][0].update(image_id="1", category_id="1", id="x"), ""),
        (as_written(lambda _: None, "id"), ""),
        (as_written(lambda _: 7, "id"), ""),
        (lambda content: content["annotations"][1].pop("id"), ""),
        (in_image(id="2"), ""),
        (in_image(id=2.0), ""),
        (in_image(width="12", height=10.0), ""),
        (in_image(width=None), SIZE),
        (in_image(height=...), SIZE),
        (in_image(width=0, height=-1), SIZE),
        (in_image(width=float("nan")), SIZE),
        (in_image(width=10**400), SIZE),
        (in_image(height="10px"), SIZE),
        (in_image(file_name=f"val2014/{NAME}"), FOLDERS),
        (in_image(file_name=f"..\\images\\{NAME}"), FOLDERS),
        (in_image(file_name=f"C:\\data\\{NAME}"), FOLDERS),
        (in_image(file_name=f"/data/{NAME}"), FOLDERS),
        (in_image(file_name=f" ./{NAME}"), ""),
        (lambda content: [content.pop(part) for part in ("info",)], ""),
        (lambda content: [item.update(id=str(item["id"])) for item in content["categories"]], ""),
        (lambda content: content["categories"].append({"id": 200, "name": "person"}), ""),
        (lambda content: content["categories"].insert(0, {"id": 0, "name": "objects"}), ""),
        (renumbered, ""),
        (lambda content: content["images"].append(dict(content["images"][0])), ""),
        (lambda content: content["annotations"].append(None), "1 of 4 annotations: of no image in the list"),
        (
            lambda content: content["annotations"].append(annotation(9, 77, 1, SQUARE)),
            "1 of 4 annotations: of no image in the list, the first is annotation 9 of image 77 (entry 4)",
        ),
        (
            lambda content: content["annotations"].append(annotation(9, None, 1, SQUARE)),  # type: ignore[arg-type]
            "1 of 4 annotations: of no image in the list, the first is annotation 9 (entry 4)",
        ),
    ],
)
def test_values_in_the_forms_of_exporters(tmp_path: Path, change: Any, told_of: str) -> None:
    """Each change leaves a person and a bicycle on image 1, and a toothbrush on image 2."""
    annotations = [annotation(1, 1, 1, SQUARE), annotation(2, 1, 2, rectangle(6, 6, 8, 8))]
    folder = write_coco(tmp_path, [*annotations, annotation(3, 2, 90, SQUARE)], images=2)
    path = folder / "instances_val2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    told: list[str] = []
    first, second = coco_annotated(tmp_path, "val", folder, told.append)
    assert [(drawn(first) == value).sum() for value in (1, 2)] == [16, 4]
    assert (drawn(second) == 80).sum() == 16
    assert isinstance(second, SourceRecord)
    assert isinstance(second.image, File)
    assert second.tags == (79,)
    assert second.image.exists()
    assert told[0].startswith(f"instances_val2014.json: {told_of}") if told_of else told == []
    lost = "left out" in "".join(told)
    assert told[1:] == (["instances_val2014.json: 3 of 4 annotations are used"] if lost else [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (in_image(file_name=...), "image has no file_name; write"),
        (in_image(file_name=None), "image has no file_name; write"),
        (in_image(file_name=7, coco_url="http://x/1.jpg"), "image has no file_name; write"),
        (in_image(file_name="../../secret.jpg"), "leaves its folder"),
        (in_image(file_name="a\ud800\n.jpg"), "cannot be printed"),
        (lambda content: content["annotations"][2].update(category_id=None), "category that is not in"),
        (lambda content: content["annotations"][2].update(category_id=12), "category that is not in"),
        (lambda content: content["annotations"][2].pop("category_id"), "category that is not in"),
        (in_image(id=None), "image has no id"),
        (in_image(id=[2]), "image has no id"),
        (in_image(id=True), "image has no id"),
    ],
)
def test_a_picture_that_is_left_out_takes_its_annotations_along(
    tmp_path: Path, change: Any, reason: str
) -> None:
    annotations = [annotation(n, image, 1, SQUARE) for n, image in ((1, 1), (2, 2), (3, 2))]
    folder = write_coco(tmp_path, annotations, images=2)
    path = folder / "instances_val2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    told: list[str] = []
    made = list(coco_annotated(tmp_path, "val", folder, told.append))
    (record,) = (entry for entry in made if isinstance(entry, SourceRecord))
    (left,) = (entry for entry in made if isinstance(entry, Rejection))
    assert record.id == "COCO_val2014_000000000001"
    assert reason in left.reason
    assert left.where.startswith("instances_val2014.json")
    assert sum(int(line.split()[1]) for line in told[:-1]) == 2
    assert told[-1] == "instances_val2014.json: 1 of 3 annotations are used"


def test_an_image_id_of_two_pictures_is_that_of_neither(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, [annotation(1, 1, 1, SQUARE)], images=3)
    content = json.loads((folder / "instances_val2014.json").read_text())
    content["images"][0]["id"] = "1"
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    made = list(coco_annotated(tmp_path, "val", folder))
    assert [isinstance(entry, Rejection) for entry in made] == [True, True, False]
    assert isinstance(made[0], Rejection)
    assert made[0].reason.startswith("image id 1 is that of 2 pictures")


def boxes_only(content: dict[str, Any]) -> None:
    for item in content["annotations"]:
        item["segmentation"] = []


def without(key: str, number: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][number].pop(key)


def image_two(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update(values)


# name: (change, masks there, words of the output); image 1 holds a person and a bicycle, 2 a toothbrush
TAKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], int, str]] = {
    "flags_as_text": (as_written(str, "iscrowd"), 2, ""),
    "ids_as_text": (lambda content: content["annotations"][0].update(image_id="1"), 2, ""),
    "an_image_id_as_text": (image_two(id="2"), 2, ""),
    "null_ids": (as_written(lambda _: None, "id"), 2, ""),
    "null_width": (image_two(width=None), 2, "taken from the pictures"),
    "points": (lambda content: content["annotations"][2].update(segmentation=POINTS), 2, ""),
    "flat": (lambda content: content["annotations"][2].update(segmentation=SQUARE[0]), 2, ""),
    "boxes_only": (boxes_only, 0, "3 of 3 annotations: no outline"),
    "an_outline_missing": (without("segmentation", 2), 1, "the first is annotation 3 of image 2"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_job_takes_what_exporters_write(name: str, tmp_path: Path, capsys: Any) -> None:
    change, masks, words = TAKEN[name]
    annotations = [annotation(1, 1, 1, SQUARE), annotation(2, 1, 2, rectangle(6, 6, 8, 8))]
    folder = write_coco(tmp_path, [*annotations, annotation(3, 2, 90, SQUARE)], images=2)
    path = folder / "instances_val2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    done = call(capsys, "ingest", "coco", tmp_path, "--annotations", folder, "--splits", "val", "--out", out)
    assert (done.code, done.err) == (0, "")
    assert words in done.out
    split = open_split(out, "val")
    records = [split.record(number) for number in range(2)]
    assert [np.flatnonzero(record.labels).tolist() for record in records] == [[0, 1], [79]]
    assert sum(record.mask is not None for record in records) == masks


def test_a_half_character_in_a_name_is_listed(tmp_path: Path, capsys: Any) -> None:
    listed = [{"id": 1, "file_name": "a\ud800.jpg", "width": 12, "height": 10}]
    write_coco(tmp_path, [], images=1)
    good = {"id": 2, "file_name": "COCO_val2014_000000000001.jpg", "width": 12, "height": 10}
    folder = write_coco(tmp_path, [annotation(1, 2, 1, SQUARE)], images=[*listed, good])
    words = ("coco", tmp_path, "--annotations", folder, "--splits", "val", "--max-bad-fraction", 0.5)
    done = call(capsys, "ingest", *words, "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    (row,) = json.loads((tmp_path / "out" / "rejected.json").read_text())["val"]
    assert "cannot be printed" in row["reason"]
