"""A folder per class: tags from folders, splits by folder or by seed, masks where there are any."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest import ingest
from cosa_dist.data.shards import open_split
from cosa_dist.data.source_folder import folder_source
from cosa_dist.data.source_record import Entry, File, Rejection, SourceRecord
from cosa_dist.data.source_split import seeded_validation, split_name


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 2 * shade % 256, 9)).save(path)


def tags(entries: list[Entry]) -> dict[str, tuple[int, ...] | None]:
    return {entry.id: entry.tags for entry in entries if isinstance(entry, SourceRecord)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty cats, ten of them in inner folders, ten dogs, and files that are no pictures."""
    root = tmp_path / "pets"
    for number in range(10):
        picture(root / "cat" / f"{number}.jpg", number)
        picture(root / "cat" / "old" / f"{number}.JPG", 50 + number)
        picture(root / "größer dog" / f"{number}.png", 100 + number)
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "README.md").write_text("no class")
    (root / ".git" / "x").mkdir(parents=True)
    picture(root / ".git" / "x" / "1.jpg")
    return root


def test_tags_are_the_folders(pictures: Path, tmp_path: Path) -> None:
    info, entries = folder_source(pictures, val_share=0.2)
    assert (info.name, info.class_names) == ("pets", ("cat", "größer dog"))
    found = tags(entries["train"]) | tags(entries["val"])
    assert len(found) == 30
    assert found["cat__old__3"] == (0,)
    assert found["größer dog__3"] == (1,)
    ingest(entries, info, tmp_path / "out")
    assert open_split(tmp_path / "out", "train").class_counts == {"cat": 16, "größer dog": 8}
    assert open_split(tmp_path / "out", "val").class_counts == {"cat": 4, "größer dog": 2}


def test_the_seed_chooses_the_validation_pictures(pictures: Path) -> None:
    chosen = [set(tags(folder_source(pictures, val_share=0.2, seed=seed)[1]["val"])) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert list(folder_source(pictures, val_share=0.0)[1]) == ["train"]
    with pytest.raises(DataError, match="--val-share is in"):
        folder_source(pictures, val_share=1.0)


@given(
    names=st.sets(st.text(max_size=5), max_size=40),
    more=st.text(min_size=6, max_size=6),
    share=st.floats(0, 0.99),
)
def test_few_change_sides_when_a_name_is_added(names: set[str], more: str, share: float) -> None:
    before = seeded_validation(names, share, 3)
    after = seeded_validation(names | {more}, share, 3)
    assert len(before) == round(share * len(names))
    assert len(before ^ (after - {more})) <= 1


def test_splits_by_folder(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "train/b/1.jpg", "validation/b/1.jpg", "masks/a/1.jpg"):
        picture(tmp_path / "d" / name)
    info, entries = folder_source(tmp_path / "d")
    assert info.class_names == ("a", "b")
    assert {split: tags(listed) for split, listed in entries.items()} == {
        "train": {"a__1": (0,), "b__1": (1,)},
        "val": {"b__1": (1,)},
    }
    assert [split_name(name) for name in ("Valid", "dev", "train", "extra ")] == [
        "val",
        "val",
        "train",
        "extra",
    ]


def test_masks_are_taken_where_there_are_any(pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "cat" / "old").mkdir(parents=True)
    Image.fromarray(np.ones((4, 6), np.uint8)).save(masks / "cat" / "old" / "3.png")
    _, entries = folder_source(pictures, masks=masks, val_share=0)
    found = {
        entry.id: entry.mask for entry in entries["train"] if isinstance(entry, SourceRecord) and entry.mask
    }
    assert found == {"cat__old__3": File(masks, "cat/old/3.png")}
    with pytest.raises(DataError, match=r"no mask of these pictures .* that of cat/0.jpg would be cat/0.png"):
        folder_source(pictures, masks=pictures / ".git", val_share=0)


def test_classes_from_a_list(pictures: Path) -> None:
    info, entries = folder_source(pictures, classes=("wolf", "cat"), val_share=0)
    assert info.class_names == ("wolf", "cat")
    rejected = [entry for entry in entries["train"] if isinstance(entry, Rejection)]
    assert len(rejected) == 10
    assert "'größer dog' is no class" in rejected[0].reason
    assert tags(entries["train"])["cat__3"] == (1,)


def test_folders_that_are_none(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        folder_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "empty" / "1.jpg")
    with pytest.raises(DataError, match="the layout is CLASS/PICTURE.jpg"):
        folder_source(tmp_path / "empty")
    (pictures / "linked").symlink_to(tmp_path / "empty")
    with pytest.raises(DataError, match="linked is a link to a folder"):
        folder_source(pictures)


def test_the_same_name_with_two_endings_is_reported(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/1.png", "b/2.jpg"):
        picture(tmp_path / "d" / name)
    _, entries = folder_source(tmp_path / "d", val_share=0)
    assert [entry.id for entry in entries["train"]] == ["a__1", "a__1", "b__2"]
