"""COCO by folders of masks and by its official annotations, with masks computed by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosa_dist.data.catalog import COCO, COCO_CLASSES
from cosa_dist.data.decode import decode_mask
from cosa_dist.data.errors import DataError, RecordError, Rejection
from cosa_dist.data.ingest.ingest import IngestOptions, ingest
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.coco_json import annotated_source
from cosa_dist.data.sources.devkits import coco_records, coco_source
from cosa_dist.data.sources.record import File, SourceOptions, SourceRecord
from tests.data.coco_files import SQUARE, annotation, coco_annotated, drawn, entries, rectangle, write_coco

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def test_smaller_objects_lie_on_larger_ones_and_crowds_are_ignored(tmp_path: Path) -> None:
    told: list[str] = []
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
        tell=told.append,
    )
    assert told == [
        "instances_val2014.json: 1 of 6 annotations: crowds (iscrowd 1), the first is annotation 900 of "
        "image 1, 'COCO_val2014_000000000001.jpg'; their pixels are ignored (255) where no object lies "
        "(some tools write 1 for objects with holes or of several parts: then set iscrowd to 0 there)"
    ]
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
    assert (report.count, report.survey["without tags"]) == (3, 2)


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
        (
            {"categories": [{"id": 1, "name": "person"}]},
            "lists 1 of COCO's 80 categories .'bicycle' is missing.; of a subset, add .*instances_",
        ),
        ({"categories": [{"name": "person"}]}, "category has no id"),
        ({"categories": [{"id": 1, "supercategory": "animal"}]}, "category has no id, no name"),
        ({"categories": [{"id": 1, "name": "person"}, {"id": "1", "name": "car"}]}, "or two names"),
        ({"categories": [{"id": 1, "name": "weed"}]}, "'weed' is none.*source 'table' or 'folder'"),
        ({"annotations": [{"caption": "A cat.", "image_id": 1}], "categories": None}, "no lists images"),
        ({"annotations": [annotation(1, 5, 1, [])]}, "none of the annotations is of an image in its list"),
        ({"annotations": None}, "no lists images, annotations"),
        ({"images": {"1": {"id": 1}}}, "no lists images, .* .it has 'info', 'images', "),
        ({"images": []}, "lists no images"),
    ],
)
def test_a_json_that_is_not_cocos(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = write_coco(tmp_path, [], images=1)
    content = json.loads((folder / "instances_val2014.json").read_text()) | changes
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        list(coco_annotated(tmp_path, "val", folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"images": [', "is not JSON .*get the file again"),
        (b"", "is not JSON"),
        (b'{"id": 1}\n{"id": 2}\n', "is not JSON"),
        (b'[{"image_id": 1}]', "not an instances file of COCO"),
        (b"null", "not an instances file of COCO"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is not JSON"),
        ('{"images": "\xe9"}'.encode("latin-1"), "is not UTF-8"),
        ("{}".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path: Path, content: bytes, words: str) -> None:
    folder = write_coco(tmp_path, [])
    with pytest.raises(DataError, match="no annotations .*instances_val2014"):
        list(coco_annotated(tmp_path, "val", tmp_path))
    (folder / "instances_val2014.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(coco_annotated(tmp_path, "val", folder))


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 1, 1, SQUARE)], images=1) / "instances_val2014.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (made,) = coco_annotated(tmp_path, "val", path)
    assert (drawn(made) == 1).sum() == 16


def test_the_release_of_2017_is_another_data_set(tmp_path: Path) -> None:
    told: list[str] = []
    options = SourceOptions(notify=told.append)
    folder = write_coco(tmp_path, [annotation(1, 1, 1, SQUARE)], images=1)
    assert annotated_source(tmp_path, ["val"], folder, options)[0] is COCO
    for name in ("annotations/instances_val{}.json", "val{}"):
        (tmp_path / name.format(2014)).rename(tmp_path / name.format(2017))
    assert told == []
    for given in (folder, folder / "instances_val2017.json"):
        info, made = annotated_source(tmp_path, ["val"], given, options)
        assert (info.name, info.class_names, dict(info.split_sizes)) == ("coco2017", COCO_CLASSES, {})
        (entry,) = made["val"]
        assert (drawn(entry) == 1).sum() == 16
    assert "named coco2017" in told[0]
    with pytest.raises(DataError, match="one file.*for the splits train, val; name its split with --splits"):
        annotated_source(tmp_path, ["train", "val"], folder / "instances_val2017.json", options)
    with pytest.raises(DataError, match="--classes is not for --annotations"):
        annotated_source(tmp_path, ["val"], folder, SourceOptions(("a",)))
    (tmp_path / "val2017").rename(tmp_path / "val2014")
    with pytest.raises(DataError, match="no folder .*val2017 .*COCO 2017's"):
        coco_annotated(tmp_path, "val", folder)
    with pytest.raises(DataError, match=r"no annotations .*there: instances_val2017\.json"):
        list(coco_annotated(tmp_path, "val", folder / "instances_val2014.json"))


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
    assert coco_source(coco_root, ("train", "val"), SourceOptions())[0] is COCO
    for old, new in (("COCO_val2014_000000000003", "000000000003"), ("000000000003", "drone_3")):
        (coco_root / "val2014" / f"{old}.jpg").rename(coco_root / "val2014" / f"{new}.jpg")
        (coco_root / "val.txt").write_text(new)
        if new.isdecimal():
            assert coco_source(coco_root, ("val",), SourceOptions())[0] is COCO
    assert coco_source(coco_root, ("train",), SourceOptions())[0] is COCO
    with pytest.raises(DataError, match=r"'drone_3' is no image id of COCO, .*--classes FILE"):
        coco_source(coco_root, ("train", "val"), SourceOptions())
    (coco_root / "classes.txt").write_text("roof\nroad\n")
    lines: list[str] = []
    info, entries = coco_source(coco_root, ("train", "val"), SourceOptions(notify=lines.append))
    assert (info.name, info.class_names, len(entries["train"])) == ("own_coco", ("roof", "road"), 3)
    assert lines == [f"the masks' 2 classes are those of {coco_root / 'classes.txt'}"]
    assert coco_source(coco_root, ("val",), SourceOptions(("a",)))[0].class_names == ("a",)
