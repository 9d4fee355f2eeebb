"""Lists and folders: what entries a source yields, and which it refuses to name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest_sources import (
    Rejection,
    SourceRecord,
    coco_records,
    duplicates_rejected,
    parse_id_list,
    read_id_list,
    synthetic_info,
    synthetic_records,
    unsafe_id,
    voc_records,
)

WORD = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="_-."), min_size=1)


@given(ids=st.lists(WORD), gaps=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", " \n", " 1\n", "\n\t"])))
def test_a_list_gives_its_ids_whatever_the_line_ends(ids: list[str], gaps: list[str]) -> None:
    text = "".join(name + (gaps[i % len(gaps)] if gaps else "\n") for i, name in enumerate(ids))
    assert parse_id_list(text) == ids


@given(text=st.text())
def test_any_text_is_parsed_and_safe_ids_stay_in_their_folder(text: str) -> None:
    folder = Path("/data/images")
    for entry in parse_id_list(text):
        assert entry
        assert not any(letter.isspace() for letter in entry)
        if unsafe_id(entry) is None:
            assert (folder / f"{entry}.jpg").parent == folder


def test_lists_of_paths_are_understood() -> None:
    text = "\ufeff/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\nJPEGImages/b.jpg\n"
    assert parse_id_list(text) == ["2007_000032", "b"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "a\\b", "", "x" * 201, "a\x00b"])
def test_ids_that_are_no_plain_names_are_unsafe(name: str) -> None:
    assert unsafe_id(name)


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n \n")
    with pytest.raises(DataError, match="names no record"):
        read_id_list(tmp_path / "train.txt")
    with pytest.raises(DataError, match=r"did you mean 'train'.*lists there: train"):
        read_id_list(tmp_path / "trian.txt")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_id_list(tmp_path / "train.txt")


def test_voc_folders(voc_root: Path) -> None:
    for root in (voc_root, voc_root.parent, voc_root.parent.parent):
        assert [entry.id for entry in voc_records(root, "val")] == ["2007_000006", "2007_000007"]
    with pytest.raises(DataError, match="no VOC devkit"):
        voc_records(voc_root / "JPEGImages", "val")
    with pytest.raises(DataError, match="SegmentationClassAug"):
        voc_records(voc_root, "train_aug")


def test_voc_augmented_and_test_splits(voc_root: Path) -> None:
    (voc_root / "SegmentationClass").rename(voc_root / "SegmentationClassAug")
    lists = voc_root / "ImageSets" / "Segmentation"
    (lists / "train.txt").rename(lists / "trainaug.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    records = [entry for entry in voc_records(voc_root, "train_aug") if isinstance(entry, SourceRecord)]
    assert len(records) == 6
    assert all(str(entry.mask).endswith(f"SegmentationClassAug/{entry.id}.png") for entry in records)
    assert [entry.mask for entry in voc_records(voc_root, "test") if isinstance(entry, SourceRecord)] == [
        None,
        None,
    ]


def test_coco_folders(coco_root: Path) -> None:
    (record,) = coco_records(coco_root, "val")
    assert isinstance(record, SourceRecord)
    assert record.image == coco_root / "val2014" / "COCO_val2014_000000000003.jpg"
    with pytest.raises(DataError, match=r"no split 'vall' \(did you mean 'val'\?\)"):
        coco_records(coco_root, "vall")
    with pytest.raises(DataError, match=r"no folder .*train2014"):
        coco_records(coco_root / "train2014", "train")


def test_links_out_of_the_folder_and_traversal_are_rejected(voc_root: Path) -> None:
    secret = voc_root.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    (voc_root / "JPEGImages" / "linked.jpg").symlink_to(secret)
    (voc_root / "ImageSets" / "Segmentation" / "val.txt").write_text("linked\n../../secret\n2007_000006\n")
    linked, climbing, good = voc_records(voc_root, "val")
    assert isinstance(linked, Rejection)
    assert "link that leaves" in linked.reason
    assert isinstance(climbing, Rejection)
    assert "leaves its folder" in climbing.reason
    assert isinstance(good, SourceRecord)


def test_an_id_counts_once() -> None:
    first, second, third = duplicates_rejected(
        [SourceRecord("a", b"1"), SourceRecord("a", b"2"), SourceRecord("b", b"3")]
    )
    assert first == SourceRecord("a", b"1")
    assert second == Rejection("a", "id occurs twice in the list; the first one is kept")
    assert third == SourceRecord("b", b"3")


def test_generated_records_carry_masks_and_context() -> None:
    records = list(synthetic_records("train", 3, seed=1, image_size=48))
    assert len({record.id for record in records}) == 3
    for record in records:
        assert isinstance(record.image, bytes)
        assert isinstance(record.mask, bytes)
        assert record.context is not None
        assert decode_image(record.image).size == (48, 48)
        assert decode_mask(record.mask).max() <= synthetic_info().num_foreground
        assert set(np.unique(decode_mask(record.context))) <= {0, 1}
    with pytest.raises(DataError, match="generated split 'train'"):
        list(synthetic_records("train", 3, seed=1, image_size=1))
