"""Ingest from end to end: what goes into shards, what is left out, and what stops it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cosa_dist.data.catalog import COCO, VOC, DatasetInfo, renamed
from cosa_dist.data.decode import decode_mask, encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.ingest import IngestOptions, default_shard_count, ingest
from cosa_dist.data.ingest.report import coverage_lines
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.devkits import coco_records, voc_records
from cosa_dist.data.sources.record import Entry, SourceRecord

ABC = DatasetInfo("abc", ("a", "b", "c"))


def photo(width: int = 6, height: int = 4) -> bytes:
    return encode_jpeg(np.full((height, width, 3), 90, dtype=np.uint8))


def mask(value: int, width: int = 6, height: int = 4) -> bytes:
    return encode_mask(np.full((height, width), value, dtype=np.uint8))


def rejected(out: Path, split: str) -> dict[str, str]:
    content = json.loads((out / "rejected.json").read_text())
    return {entry["id"]: entry["reason"] for entry in content[split]}


def contents(out: Path, split: str) -> dict[str, tuple[bytes, bytes | None, list[float]]]:
    opened = open_split(out, split)
    records = [opened.record(index) for index in range(len(opened))]
    return {record.id: (record.image, record.mask, record.labels.tolist()) for record in records}


def test_voc_records_arrive_as_they_were(voc_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = {split: voc_records(voc_root, split) for split in ("train", "val")}
    reports = ingest(sources, VOC, out)
    assert [(report.name, report.count, report.expected) for report in reports] == [
        ("train", 6, 1464),
        ("val", 2, 1449),
    ]
    assert rejected(out, "train") == {}
    found = contents(out, "train") | contents(out, "val")
    assert len(found) == 8
    for number, name in enumerate(sorted(found)):
        image, stored, labels = found[name]
        assert image == (voc_root / "JPEGImages" / f"{name}.jpg").read_bytes()
        original = np.asarray(Image.open(voc_root / "SegmentationClass" / f"{name}.png"))
        assert stored is not None
        assert Image.open(io.BytesIO(stored)).mode == "L"
        np.testing.assert_array_equal(decode_mask(stored), original)
        # The stripes hold classes number + 1 and 20, and ignore, which is no tag.
        assert np.flatnonzero(labels).tolist() == [number, 19]


def test_coco_masks_with_eighty_classes(coco_root: Path, tmp_path: Path) -> None:
    ingest({"train": coco_records(coco_root, "train")}, COCO, tmp_path / "out", IngestOptions(processes=2))
    found = contents(tmp_path / "out", "train")
    tags = {name: np.flatnonzero(labels).tolist() for name, (_, _, labels) in found.items()}
    assert tags == {f"COCO_train2014_{number:012d}": [79 - number] for number in range(3)}


def test_bad_records_are_left_out_with_their_reasons(voc_root: Path, tmp_path: Path) -> None:
    images, masks = voc_root / "JPEGImages", voc_root / "SegmentationClass"
    lists = voc_root / "ImageSets" / "Segmentation" / "train.txt"
    names = [f"2007_{number:06d}" for number in range(6)]
    (images / f"{names[0]}.jpg").write_bytes((images / f"{names[0]}.jpg").read_bytes()[:-300])
    (images / f"{names[1]}.jpg").unlink()
    (masks / f"{names[2]}.png").unlink()
    Image.new("RGB", (43, 30)).save(masks / f"{names[3]}.png")
    Image.new("L", (20, 20)).save(masks / f"{names[4]}.png")
    lists.write_text("\n".join([*names, names[5], "../../../outside"]))
    shown = io.StringIO()
    out = tmp_path / "out"
    options = IngestOptions(max_bad_fraction=0.9)
    (report,) = ingest({"train": voc_records(voc_root, "train")}, VOC, out, options, Console(file=shown))
    assert report.count == 1
    assert list(contents(out, "train")) == [names[5]]
    reasons = rejected(out, "train")
    expected = {
        names[0]: (f" (JPEGImages/{names[0]}.jpg)", "image cannot be decoded"),
        names[1]: (f" (JPEGImages/{names[1]}.jpg)", "no image file; get it"),
        names[2]: (f" (SegmentationClass/{names[2]}.png)", "no mask file; get it"),
        names[3]: (f" (SegmentationClass/{names[3]}.png)", "mask has colours"),
        names[4]: (f" (SegmentationClass/{names[4]}.png)", "mask is 20x20 pixels, the image 44x30"),
        names[5]: ("", "id occurs twice"),
        "../../../outside": ("", "id leaves its folder"),
    }
    assert set(reasons) == set(expected)
    for name, (where, words) in expected.items():
        assert f"train: rejected {name!r}{where}: {words}" in shown.getvalue()
        assert words in reasons[name]
        assert ";" in reasons[name]
    assert "1 records in 1 shards, 7 rejected; differs from the known size of 1464" in shown.getvalue()


def test_values_outside_the_classes_are_rejected(tmp_path: Path) -> None:
    entries: list[Entry] = [
        SourceRecord("low", photo(), mask(3)),
        SourceRecord("high", photo(), mask(4)),
        SourceRecord("ignored", photo(), mask(255)),
        SourceRecord("tagged", photo(), None, tags=(2, 0, 2)),
        SourceRecord("wrong tag", photo(), None, tags=(3,)),
    ]
    ingest({"val": entries}, ABC, tmp_path / "out", IngestOptions(max_bad_fraction=0.5))
    assert rejected(tmp_path / "out", "val") == {
        "high": "mask value 4 is outside 0..3 and 255; write the classes' ids into it",
        "wrong tag": "tag outside 0..2: (3,); replace it, or take the id off the list",
    }
    labels = {name: found[2] for name, found in contents(tmp_path / "out", "val").items()}
    assert labels == {"low": [0, 0, 1], "ignored": [0, 0, 0], "tagged": [1, 0, 1]}
    assert open_split(tmp_path / "out", "val").class_counts == {"a": 1, "b": 0, "c": 2}


def test_too_many_bad_records_end_it_without_output(tmp_path: Path) -> None:
    entries: list[Entry] = [SourceRecord(str(n), photo(), mask(9 if n < 3 else 1)) for n in range(10)]
    with pytest.raises(
        DataError, match=r"at least 3 of 10 records are bad.*20%.*\(3x\): mask value 9"
    ) as caught:
        ingest({"val": entries}, ABC, tmp_path / "out", IngestOptions(max_bad_fraction=0.2))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="3 of 3 records are bad"):
        ingest({"val": entries[:3]}, ABC, tmp_path / "out", IngestOptions(max_bad_fraction=0.99))
    with pytest.raises(DataError, match="'val' has no records"):
        ingest({"val": []}, ABC, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ingest({"val": entries}, ABC, tmp_path / "out", IngestOptions(max_bad_fraction=0.3))
    assert open_split(tmp_path / "out", "val").size == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_output_is_replaced_only_when_asked(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    out = make_shards(3)
    with pytest.raises(DataError, match=r"exists already; .*--overwrite"):
        make_shards(4)
    assert open_split(out, "train").size == 3
    make_shards(4, overwrite=True)
    assert open_split(out, "train").size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not a shard folder; choose another output"):
        ingest({"val": [SourceRecord("a", photo(), mask(1))]}, ABC, precious, IngestOptions(overwrite=True))
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_failed_overwrite_leaves_the_old_shards(make_shards: Callable[..., Path]) -> None:
    out = make_shards(3)
    with pytest.raises(DataError, match="has no records"):
        ingest({"val": []}, ABC, out, IngestOptions(overwrite=True))
    assert open_split(out, "train").size == 3


def test_training_records_are_mixed_and_validation_keeps_its_order(
    make_shards: Callable[..., Path],
) -> None:
    out = make_shards(40, shards=4)
    train = open_split(out, "train").ids
    assert train != tuple(sorted(train))
    assert sorted(train) == [f"drawn_{number:03d}" for number in range(40)]
    assert open_split(out, "val").ids == tuple(f"drawn_{number:03d}" for number in range(40, 45))


def test_processes_and_shards_change_nothing_of_the_content(make_shards: Callable[..., Path]) -> None:
    first = open_split(make_shards(9, shards=2), "train")
    one = (first.ids, first.fingerprint)
    out = make_shards(9, shards=5, processes=2, overwrite=True)
    second = open_split(out, "train")
    assert one == (second.ids, second.fingerprint)
    names = sorted(path.name for path in (out / "train").iterdir())
    assert names == [f"shard-{number:05d}-of-00005.arrow" for number in range(5)]


def test_the_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    base = SourceRecord("a", photo(), mask(1))
    variants = [
        base,
        SourceRecord("b", photo(), mask(1)),
        SourceRecord("a", photo(7), mask(1, 7)),
        SourceRecord("a", photo(), mask(0)),
        SourceRecord("a", photo(), mask(1), tags=()),
        SourceRecord("a", photo(), None),
    ]
    found = set()
    for number, variant in enumerate(variants):
        ingest({"val": [variant]}, ABC, tmp_path / str(number))
        found.add(open_split(tmp_path / str(number), "val").fingerprint)
    assert len(found) == len(variants)
    ingest({"val": [base]}, ABC, tmp_path / "again")
    assert open_split(tmp_path / "again", "val").fingerprint in found


def test_images_without_tags_are_kept_or_left_out_by_rule(tmp_path: Path) -> None:
    entries: list[Entry] = [
        SourceRecord("empty mask", photo(), mask(0)),
        SourceRecord("no tags", photo(8), None, tags=()),
        SourceRecord("nothing known", photo(9)),
        SourceRecord("tagged", photo(10), None, tags=(1,)),
    ]
    (kept,) = ingest({"train": entries}, ABC, tmp_path / "kept")
    assert kept.line() == "train: 4 records in 4 shards, 3 without tags, 3 without mask"
    options = IngestOptions(untagged="leave-out", max_bad_fraction=0)
    (left,) = ingest({"train": entries}, ABC, tmp_path / "left", options)
    assert left.line() == "train: 1 records in 1 shards, 3 left out for want of a tag, 1 without mask"
    assert len(rejected(tmp_path / "left", "train")) == 3
    with pytest.raises(DataError, match="all 3 records were left out"):
        ingest({"train": entries[:3]}, ABC, tmp_path / "none", options)


def test_the_same_picture_under_two_ids_is_reported_and_kept(tmp_path: Path) -> None:
    same, other = photo(), photo(8)
    train: list[Entry] = [SourceRecord("a", same, tags=(0,)), SourceRecord("b", same, tags=(1,))]
    sources = {
        "train": [*train, SourceRecord("c", other, tags=(0,)), SourceRecord("d", photo(9), tags=(0,))],
        "train_more": [SourceRecord("d", photo(9), tags=(0,))],
        "val": [SourceRecord("c", other, tags=(0,))],
    }
    shown = io.StringIO()
    reports = ingest(sources, ABC, tmp_path / "out", console=Console(file=shown))
    assert [report.count for report in reports] == [4, 1, 1]
    groups = json.loads((tmp_path / "out" / "repeated.json").read_text())
    # `d` is in two training lists only, as VOC's train is in its train_aug: no mistake.
    found = sorted(sorted(map(tuple, group)) for group in groups)
    assert found == [[("train", "a"), ("train", "b")], [("train", "c"), ("val", "c")]]
    assert "2 pictures occur more than once, such as " in shown.getvalue()


def test_shards_know_their_size(make_shards: Callable[..., Path]) -> None:
    out = make_shards(9, shards=2)
    shards = json.loads((out / "dataset.json").read_text())["splits"]["train"]["shards"]
    assert [shard["count"] for shard in shards] == [4, 5]
    for shard in shards:
        assert shard["bytes"] == (out / "train" / shard["file"]).stat().st_size
        assert set(shard) == {"file", "count", "bytes"}


def test_number_of_shards() -> None:
    assert [default_shard_count(n) for n in (1, 5, 8, 1000, 1464, 10582, 82081)] == [1, 5, 8, 8, 11, 82, 128]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shards": 0}, "shards must be 1"),
        ({"processes": 0}, "processes must be 1"),
        ({"max_bad_fraction": 1.0}, "fraction of bad"),
        ({"untagged": "leave_out"}, "did you mean 'leave-out'"),
    ],
)
def test_options_are_checked(options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        IngestOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("counts", "sizes", "lines"),
    [
        ({"train": (2, 2, 1), "val": (1, 1, 1)}, (4, 3), []),
        ({"train": (4, 2, 1), "val": (0, 0, 0)}, (4, 3), ["train: on every picture: 'a'; what no"]),
        ({"train": (2, 0, 0), "val": (1, 1, 0), "test": (0, 1, 0)}, (4, 3, 1),
         ["train: no picture of 'b', only in val, test;", "train: no picture of 'c', nor elsewhere;"]),
        ({"train": (1, 1, 1), "test": (1, 1, 1)}, (4, 3),
         ["no split 'val', which training wants: --data.val_split"]),
        ({"train_aug": (1, 1, 1)}, (4,), ["no split 'val', which training wants: ingest own data"]),
        ({"val": (1, 0, 1)}, (3,), ["no split 'train': nothing can be trained"]),
        ({"train": (0, 0, 0), "train_aug": (1, 1, 1), "val": (0, 0, 0)}, (4, 3, 2),
         ["train: no picture of 'a', 'b', 'c', nor elsewhere;"]),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_said(
    counts: dict[str, tuple[int, ...]], sizes: tuple[int, ...], lines: list[str]
) -> None:
    by_class = {split: dict(zip("abc", found, strict=True)) for split, found in counts.items()}
    made = coverage_lines("abc", by_class, dict(zip(counts, sizes, strict=True)))
    assert [line.startswith(start) for line, start in zip(made, lines, strict=True)] == [True] * len(lines)


def test_lines_on_many_classes_and_on_one() -> None:
    names = [f"c{number}" for number in range(13)]
    made = coverage_lines(
        names, {"train": dict.fromkeys(names, 0), "val": dict.fromkeys(names, 0)}, {"train": 1, "val": 1}
    )
    assert [line.startswith("train: no picture of 'c0', 'c1',") for line in made] == [True]
    assert "'c9' and 3 more, nor elsewhere" in made[0]
    made = coverage_lines(["a"], {"train": {"a": 5}, "val": {"a": 1}}, {"train": 5, "val": 2})
    assert [line.split(";")[0] for line in made] == ["train: the only class and on every picture: 'a'"]


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_background_is_no_class(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"'x' has a class '{name}', but background is no class"):
        ingest({"train": []}, DatasetInfo("x", ("cat", name)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_split_names_cannot_leave_the_output(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split name '../x'"):
        ingest({"../x": []}, ABC, tmp_path / "out")


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    voc = {split: voc_records(shared_data / "voc_mini", split) for split in ("train", "val")}
    reports = ingest(voc, renamed(VOC, "voc_mini"), tmp_path / "voc", IngestOptions(processes=2))
    assert [(report.count, report.rejections) for report in reports] == [(1000, ()), (249, ())]
    coco = {split: coco_records(shared_data / "coco_mini", split) for split in ("train", "val")}
    reports = ingest(coco, renamed(COCO, "coco_mini"), tmp_path / "coco")
    assert [(report.count, report.rejections) for report in reports] == [(65, ()), (133, ())]
    train = open_split(tmp_path / "coco", "train")
    assert sum(count > 0 for count in train.class_counts.values()) == 63
