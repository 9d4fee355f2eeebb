"""COCO by folders of masks and by its official annotations, with masks computed by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cosa_dist.data.catalog import COCO, COCO_CLASSES
from cosa_dist.data.decode import decode_mask
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.ingest import IngestOptions, ingest
from cosa_dist.data.shards import open_split
from cosa_dist.data.source_coco import coco_annotated, coco_records, coco_source
from cosa_dist.data.source_coco_json import CocoMask
from cosa_dist.data.source_record import Entry, File, Rejection, SourceRecord

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

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


def entries(root: Path, annotations: list[dict[str, Any]], images: Any = 3) -> list[Entry]:
    return list(coco_annotated(root, "val", write_coco(root, annotations, images)))


def drawn(entry: Entry) -> np.ndarray:
    assert isinstance(entry, SourceRecord)
    assert isinstance(entry.mask, CocoMask)
    return decode_mask(entry.mask.read())


def test_smaller_objects_lie_on_larger_ones_and_crowds_are_ignored(tmp_path: Path) -> None:
    first, second, third = entries(
        tmp_path,
        [
            annotation(5, 1, 90, rectangle(2, 2, 4, 4)),
            annotation(3, 1, 1, rectangle(0, 0, 6, 6)),
            # Column by column from the top left: 80 pixels are not, the last 40 are (4 columns of 10).
            annotation(900, 1, 13, {"size": [10, 12], "counts": [80, 40]}, crowd=1),
            annotation(4, 1, 2, rectangle(5, 0, 9, 9)),
            annotation(7, 2, 1, rectangle(0, 0, 2, 2)),
            annotation(6, 2, 3, rectangle(0, 0, 2, 2)),
        ],
    )
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[:, 8:12] = 255
    expected[0:6, 0:6] = 1  # 36 pixels, as the bicycle: equal areas, the higher id (4) is on top
    expected[0:9, 5:9] = 2
    expected[2:4, 2:4] = 80
    np.testing.assert_array_equal(drawn(first), expected)
    assert isinstance(first, SourceRecord)
    assert first.tags == (0, 1, 11, 79)  # category 13 is the 12th class, in the crowd region only
    assert first.image == File(tmp_path / "val2014", "COCO_val2014_000000000001.jpg")
    assert drawn(second)[:2, :2].tolist() == [[1, 1], [1, 1]]
    assert isinstance(third, SourceRecord)
    assert third.tags == ()
    assert not drawn(third).any()


def test_images_without_annotation_are_left_out_by_rule(tmp_path: Path) -> None:
    made = entries(tmp_path, [annotation(1, 2, 18, rectangle(0, 0, 5, 5))])
    (report,) = ingest({"val": made}, COCO, tmp_path / "out", IngestOptions(untagged="leave-out"))
    assert report.line() == (
        "val: 1 records in 1 shards, 2 left out for want of a tag; differs from the known size of 40137"
    )
    record = open_split(tmp_path / "out", "val").record(0)
    assert record.id == "COCO_val2014_000000000002"
    assert np.flatnonzero(record.labels).tolist() == [16]
    assert record.mask is not None
    assert (decode_mask(record.mask) == 17).sum() == 25
    rows = json.loads((tmp_path / "out" / "rejected.json").read_text())["val"]
    assert [(row["id"][-1], row["by_rule"]) for row in rows] == [("1", True), ("3", True)]
    (report,) = ingest({"val": made}, COCO, tmp_path / "all")
    assert (report.count, report.without_tags) == (3, 2)


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [10, 12], "counts": [80, 400]},
        {"size": [12, 10], "counts": [80, 40]},
        {"size": [10, 12], "counts": [-40, 160]},
        {"size": [10, 12]},
        {"size": [10, 12], "counts": "zzzzzzzzzzzzz"},
        {},
        "polygon",
        [["a", "b", 1, 2, 3, 4]],
        [7],
    ],
)
def test_damaged_outlines_are_reported(tmp_path: Path, outline: Any) -> None:
    made = entries(
        tmp_path, [annotation(1, 1, 1, outline), annotation(2, 2, 1, rectangle(0, 0, 3, 3))], images=2
    )
    assert isinstance(made[0], SourceRecord)
    assert isinstance(made[0].mask, CocoMask)
    with pytest.raises(RecordError, match="cannot be drawn"):
        made[0].mask.read()
    ingest({"val": made}, COCO, tmp_path / "out", IngestOptions(max_bad_share=0.5))
    (row,) = json.loads((tmp_path / "out" / "rejected.json").read_text())["val"]
    assert row["where"] == "instances_val2014.json, image 1"


@pytest.mark.parametrize("outline", [[], [[1, 1, 5, 5]], [[]]])
def test_outlines_without_area_leave_the_tag(tmp_path: Path, outline: Any) -> None:
    (made,) = entries(tmp_path, [annotation(1, 1, 1, outline)], images=1)
    assert not drawn(made).any()
    assert isinstance(made, SourceRecord)
    assert made.tags == (0,)


def test_names_and_categories_of_the_json_are_not_trusted(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "../../secret.jpg", "width": 12, "height": 10}
    (climbing,) = entries(tmp_path, [], images=[image])
    assert isinstance(climbing, Rejection)
    assert "leaves its folder" in climbing.reason
    unknown = entries(tmp_path, [annotation(1, 1, 12, rectangle(0, 0, 3, 3))], images=1)
    assert isinstance(unknown[0], Rejection)
    assert "category" in unknown[0].reason
    huge = {"id": 1, "file_name": "a.jpg", "width": 10**6, "height": 10**6}
    (bomb,) = entries(tmp_path, [annotation(1, 1, 1, rectangle(0, 0, 3, 3))], images=[huge])
    with pytest.raises(RecordError, match="1000000x1000000"):
        drawn(bomb)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": [{"id": 1, "name": "person"}]}, "1 categories that are not COCO's 80"),
        ({"categories": [{"name": "person"}]}, "category has no id"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1}]}, "annotation is not COCO's"),
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": [{"id": 1}]}, "an image lacks one of"),
    ],
)
def test_a_json_that_is_not_cocos(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = write_coco(tmp_path, [], images=1)
    content = json.loads((folder / "instances_val2014.json").read_text()) | changes
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        list(coco_annotated(tmp_path, "val", folder))


def test_annotations_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, [])
    with pytest.raises(DataError, match="no annotations .*instances_val2014"):
        list(coco_annotated(tmp_path, "val", tmp_path))
    (folder / "instances_val2014.json").write_text('{"images": [')
    with pytest.raises(DataError, match="is not JSON"):
        list(coco_annotated(tmp_path, "val", folder))


def test_coco_folders(coco_root: Path) -> None:
    (record,) = coco_records(coco_root, "val")
    assert isinstance(record, SourceRecord)
    assert record.image == File(coco_root / "val2014", "COCO_val2014_000000000003.jpg")
    with pytest.raises(DataError, match=r"no split 'vall' \(did you mean 'val'\?\)"):
        coco_records(coco_root, "vall")
    with pytest.raises(DataError, match=r"no folder .*train2014"):
        coco_records(coco_root / "train2014", "train")
    (coco_root / "SegmentationClass").rename(coco_root / "elsewhere")
    with pytest.raises(DataError, match="--annotations"):
        coco_records(coco_root, "val")


def test_folders_of_masks_are_cocos_only_with_its_ids(coco_root: Path) -> None:
    assert coco_source(coco_root, ("train", "val"))[0] is COCO
    for old, new in (("COCO_val2014_000000000003", "000000000003"), ("000000000003", "drone_3")):
        (coco_root / "val2014" / f"{old}.jpg").rename(coco_root / "val2014" / f"{new}.jpg")
        (coco_root / "val.txt").write_text(new)
        if new.isdecimal():
            assert coco_source(coco_root, ("val",))[0] is COCO
    assert coco_source(coco_root, ("train",))[0] is COCO
    with pytest.raises(DataError, match=r"'drone_3' is no image id of COCO, .*--classes FILE"):
        coco_source(coco_root, ("train", "val"))
    (coco_root / "classes.txt").write_text("roof\nroad\n")
    lines: list[str] = []
    info, entries = coco_source(coco_root, ("train", "val"), tell=lines.append)
    assert (info.name, info.class_names, len(entries["train"])) == ("own_coco", ("roof", "road"), 3)
    assert lines == [f"the masks' 2 classes are those of {coco_root / 'classes.txt'}"]
    assert coco_source(coco_root, ("val",), ("a",))[0].class_names == ("a",)
