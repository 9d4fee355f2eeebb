"""The VOC devkit, and its augmented training set as a list and made from SBD's release."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cosa_dist.data.catalog import VOC, VOC_CLASSES
from cosa_dist.data.decode import decode_mask
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.sources.devkits import SbdMask, voc_records, voc_source
from cosa_dist.data.sources.record import File, SourceOptions, SourceRecord


def records(root: Path, split: str, sbd: Path | None = None) -> dict[str, SourceRecord]:
    return {entry.id: entry for entry in voc_records(root, split, sbd) if isinstance(entry, SourceRecord)}


def write_mat(path: Path, ids: np.ndarray) -> None:
    """A file of the form of SBD's: one struct GTcls with Boundaries, Segmentation, CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": ids, "CategoriesPresent": np.unique(ids)[1:]}
    savemat(path, {"GTcls": fields})


@pytest.fixture
def sbd(tmp_path: Path, voc_root: Path) -> Path:
    """SBD with one VOC training image, one VOC validation image, and two of its own."""
    data = tmp_path / "benchmark_RELEASE" / "dataset"
    names = ("2007_000001", "2007_000007", "2008_000001", "2008_000002")
    for value, name in enumerate(names, start=1):
        write_mat(data / "cls" / f"{name}.mat", np.full((30, 40 + value), value, dtype=np.uint8))
    (data / "train.txt").write_text("\n".join(names[::2]) + "\n")
    (data / "val.txt").write_text("\n".join(names[1::2]) + "\n")
    return data.parent


def test_voc_folders(voc_root: Path) -> None:
    for root in (voc_root, voc_root.parent, voc_root.parent.parent):
        assert list(records(root, "val")) == ["2007_000006", "2007_000007"]
    with pytest.raises(DataError, match="no VOC devkit"):
        voc_records(voc_root / "JPEGImages", "val")


def test_the_test_split_has_no_masks(voc_root: Path) -> None:
    lists = voc_root / "ImageSets" / "Segmentation"
    (lists / "val.txt").rename(lists / "test.txt")
    assert [(entry.mask, entry.tags) for entry in records(voc_root, "test").values()] == [(None, None)] * 2


@pytest.mark.parametrize(
    "name", ["Segmentation/trainaug", "Segmentation/train_aug", "SegmentationAug/train_aug"]
)
def test_the_augmented_set_as_a_list(voc_root: Path, name: str) -> None:
    (voc_root / "SegmentationClass").rename(voc_root / "SegmentationClassAug")
    target = voc_root / "ImageSets" / f"{name}.txt"
    target.parent.mkdir(exist_ok=True)
    (voc_root / "ImageSets" / "Segmentation" / "train.txt").rename(target)
    found = records(voc_root, "train_aug")
    assert len(found) == 6
    masks = voc_root / "SegmentationClassAug"
    assert all(entry.mask == File(masks, f"{entry.id}.png") for entry in found.values())


def test_the_augmented_set_says_what_it_needs(voc_root: Path) -> None:
    with pytest.raises(DataError, match=r"no list of train_aug .*SegmentationAug/trainaug.txt.*--sbd"):
        voc_records(voc_root, "train_aug")
    lists = voc_root / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("2007_000001\n")
    with pytest.raises(DataError, match=r"SegmentationClassAug .*--sbd"):
        voc_records(voc_root, "train_aug")


def test_the_augmented_set_from_sbd(voc_root: Path, sbd: Path) -> None:
    # VOC train is 0..5, VOC val 6 and 7; SBD brings 1 (train), 7 (val, so out), and two new ones.
    own = [f"2007_{number:06d}" for number in range(6)]
    for root in (sbd, sbd / "dataset", sbd.parent):
        found = records(voc_root, "train_aug", root)
        assert list(found) == [*own, "2008_000001", "2008_000002"]
    masks = voc_root / "SegmentationClass"
    assert all(found[name].mask == File(masks, f"{name}.png") for name in own)
    made = found["2008_000002"].mask
    assert isinstance(made, SbdMask)
    np.testing.assert_array_equal(decode_mask(made.read()), np.full((30, 44), 4, dtype=np.uint8))


def test_an_sbd_release_that_is_none(voc_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no SBD release in"):
        voc_records(voc_root, "train_aug", tmp_path)


def test_damaged_sbd_masks(tmp_path: Path) -> None:
    (tmp_path / "noise.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    savemat(tmp_path / "other.mat", {"GTinst": {"Segmentation": np.zeros((2, 2), np.uint8)}})
    savemat(tmp_path / "wide.mat", {"GTcls": {"Segmentation": np.full((2, 2), 300.5)}})
    for name, words in (("noise", "can be read"), ("other", "can be read"), ("wide", "8-bit ids")):
        with pytest.raises(RecordError, match=words):
            SbdMask(tmp_path, f"{name}.mat").read()
    with pytest.raises(FileNotFoundError):
        SbdMask(tmp_path, "absent.mat").read()


OWN = ("weed", "crop", "soil")


def rename_ids(voc_root: Path, old: str, new: str) -> None:
    """Give one training picture of the devkit another id."""
    (voc_root / "JPEGImages" / f"{old}.jpg").rename(voc_root / "JPEGImages" / f"{new}.jpg")
    listing = voc_root / "ImageSets" / "Segmentation" / "train.txt"
    listing.write_text(listing.read_text().replace(old, new))


def test_a_devkit_with_vocs_ids_is_voc(voc_root: Path) -> None:
    info, entries = voc_source(voc_root.parent.parent, ("train", "val"), SourceOptions())
    assert info is VOC
    assert {split: len(listed) for split, listed in entries.items()} == {"train": 6, "val": 2}
    (voc_root / "labels.txt").write_text("background\n" + "\n".join(VOC_CLASSES))
    assert voc_source(voc_root, ("val",), SourceOptions())[0] is VOC
    assert voc_source(voc_root, ("val",), SourceOptions(VOC_CLASSES))[0] is VOC


@pytest.mark.parametrize("name", ["weeds_01", "000005", "2024_000001", "2007_0000011", "2007-000001"])
def test_other_ids_need_their_own_classes(voc_root: Path, name: str) -> None:
    rename_ids(voc_root, "2007_000001", name)
    with pytest.raises(
        DataError, match=f"'{name}' is no image id of VOC, .*--classes FILE, or in .*labels.txt"
    ):
        voc_source(voc_root, ("train", "val"), SourceOptions())
    assert voc_source(voc_root, ("val",), SourceOptions())[0] is VOC
    info, _ = voc_source(voc_root, ("train",), SourceOptions(OWN))
    assert (info.name, info.class_names) == ("VOC2012", OWN)
    # VOC's classes on other pictures are no VOC either.
    info, _ = voc_source(voc_root, ("train",), SourceOptions(VOC_CLASSES))
    assert (info.name, info.class_names, dict(info.split_sizes)) == ("VOC2012", VOC_CLASSES, {})


@pytest.mark.parametrize("name", ["labels.txt", "class_names.txt", "classes.txt", "labelmap.txt"])
@pytest.mark.parametrize("above", [False, True])
def test_a_list_of_classes_beside_the_pictures_is_taken(voc_root: Path, name: str, above: bool) -> None:
    root = voc_root.parent.parent if above else voc_root
    (root / name).write_text("\n".join(OWN))
    lines: list[str] = []
    info, _ = voc_source(root, ("train", "val"), SourceOptions(notify=lines.append))
    assert (info.name, info.class_names) == (root.name, OWN)
    assert lines == [f"the masks' 3 classes are those of {root / name}"]
    given: list[str] = []
    assert voc_source(root, ("train",), SourceOptions(("a", "b"), notify=given.append))[0].class_names == (
        "a",
        "b",
    )
    assert given == []
