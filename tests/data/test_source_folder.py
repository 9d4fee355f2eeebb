"""A folder per class: tags from folders, splits by folder or by seed, masks where there are any."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.folder import folder_source
from cosa_dist.data.sources.record import (
    Entry,
    File,
    SourceOptions,
    SourceRecord,
    seeded_validation,
    split_in_file_name,
    split_name,
    with_validation,
)


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 2 * shade % 256, 9)).save(path)


def draw(root: Path, paths: str) -> Path:
    """Draw pictures at paths separated by blanks; `a|b` in a part of a path stands for both."""
    for path in paths.split():
        for parts in product(*(part.split("|") for part in path.split("/"))):
            picture(root.joinpath(*parts[:-1], f"{parts[-1]}.jpg"))
    return root


def ids_by_split(entries: dict[str, list[Entry]], names: tuple[str, ...]) -> dict[str, str]:
    """Ids and class of each split's records, as text."""
    return {
        split: " ".join(
            f"{name}:{'+'.join(names[tag] for tag in found or ())}" for name, found in tags(listed).items()
        )
        for split, listed in entries.items()
    }


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
    info, entries = folder_source(pictures, SourceOptions(val_fraction=0.2))
    assert (info.name, info.class_names) == ("pets", ("cat", "größer dog"))
    found = tags(entries["train"]) | tags(entries["val"])
    assert len(found) == 30
    assert found["cat__old__3"] == (0,)
    assert found["größer dog__3"] == (1,)
    ingest(entries, info, tmp_path / "out")
    assert open_split(tmp_path / "out", "train").class_counts == {"cat": 16, "größer dog": 8}
    assert open_split(tmp_path / "out", "val").class_counts == {"cat": 4, "größer dog": 2}


def test_the_seed_chooses_the_validation_pictures(pictures: Path) -> None:
    chosen = [
        set(tags(folder_source(pictures, SourceOptions(val_fraction=0.2, seed=seed))[1]["val"]))
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert list(folder_source(pictures, SourceOptions(val_fraction=0.0))[1]) == ["train"]
    with pytest.raises(DataError, match="--val-fraction is in"):
        folder_source(pictures, SourceOptions(val_fraction=1.0))


@given(
    names=st.sets(st.text(max_size=5), max_size=40),
    more=st.text(min_size=6, max_size=6),
    share=st.floats(0, 0.99),
)
def test_few_change_sides_when_a_name_is_added(names: set[str], more: str, share: float) -> None:
    options = SourceOptions(val_fraction=share, seed=3)
    before = seeded_validation([names], options)
    after = seeded_validation([names | {more}], options)
    assert len(before) == round(share * len(names))
    assert len(before ^ (after - {more})) <= 1


def test_splits_by_folder(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "train/b/1.jpg", "validation/b/1.jpg", "masks/a/1.jpg"):
        picture(tmp_path / "d" / name)
    info, entries = folder_source(tmp_path / "d", SourceOptions())
    assert info.class_names == ("a", "b")
    assert {split: tags(listed) for split, listed in entries.items()} == {
        "train": {"a__1": (0,), "b__1": (1,)},
        "val": {"b__1": (1,)},
    }


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Training TRAIN training_set train-set trainset Train2017 train_2017 images_train "
                  "Training_Images_Set trainval"),
        ("val", "val Valid VALIDATION validation_set val2014 dev valid-images"),
        ("test", "test Testing test_set TestSet test_images2019 evaluation tst"),
    ],
)  # fmt: skip
def test_names_of_splits(split: str, names: str) -> None:
    assert {name: split_name(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    assert split_name(" test images ") == "test"


def test_names_that_are_no_splits() -> None:
    others = [
        "train_aug",
        "trains",
        "extra",
        "invalid",
        "contest",
        "tests2",
        "fold1",
        "test-dev",
        "",
        "developer",
        "train_" + "dataset" * 30 + "x",  # a search that tries every cut would not end
    ]
    assert [split_name(f" {name} ") for name in others] == others
    files = {
        "train-00000-of-00002": "train",
        "cifar10-test": "test",
        "my.validation.0": "val",
        "test_set": "test",
        "train2017": "train",
        "data": None,
        "train-and-test": None,
    }
    assert {name: split_in_file_name(name) for name in files} == files


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("Training/a|b/1 Testing/a|b/2", {"train": "a__1:a b__1:b", "test": "a__2:a b__2:b"}),
        ("Train/a|b/1 Valid/b/2", {"train": "a__1:a b__1:b", "val": "b__2:b"}),
        ("train2017/a/1 val2017/a/2 test-set/a/3", {"train": "a__1:a", "val": "a__2:a", "test": "a__3:a"}),
        ("TRAIN/a|b/1", {"train": "a__1:a b__1:b"}),
        ("images/train/a|b/1 images/val/a/2", {"train": "a__1:a b__1:b", "val": "a__2:a"}),
        ("a/b/train/x|y/1", {"train": "x__1:x y__1:y"}),
        ("train/images/a|b/1 val/images/a/2", {"train": "a__1:a b__1:b", "val": "a__2:a"}),
        ("training_set/training_set/a|b/1 test_set/test_set/a/1",
         {"train": "a__1:a b__1:b", "test": "a__1:a"}),
        ("a|b/train/1 a|b/test/2", {"train": "a__1:a b__1:b", "test": "a__2:a b__2:b"}),
        ("a/Train/1 a/val/2", {"train": "a__1:a", "val": "a__2:a"}),
        ("train/a|b/1 test/7", {"train": "a__1:a b__1:b"}),
        ("train/a/1 test/a/2 masks/a/1", {"train": "a__1:a", "test": "a__2:a"}),
        ("train/train|cat/1 val/train/2", {"train": "cat__1:cat train__1:train", "val": "train__2:train"}),
        ("train|cat/1", {"train": "cat__1:cat train__1:train"}),
        ("Train|bus|car/1", {"train": "Train__1:Train bus__1:bus car__1:car"}),
        ("train/1 train/old/2 cat/1", None),
        ("leaves/oak|pine/1", {"train": "oak__1:oak pine__1:pine"}),
        ("dataset/images/oak|pine/1", {"train": "oak__1:oak pine__1:pine"}),
        ("x/y/oak|pine/1", {"train": "oak__1:oak pine__1:pine"}),
        ("cat/1", {"train": "cat__1:cat"}),
        ("cat/1 cat/old/2", {"train": "cat__1:cat cat__old__2:cat"}),
        ("crack|background/1", {"train": "background__1: crack__1:crack"}),
        ("crack|_Background_/1", {"train": "_Background___1: crack__1:crack"}),
        ("train/crack|BACKGROUND/1 val/background/2",
         {"train": "BACKGROUND__1: crack__1:crack", "val": "background__2:"}),
        ("None|nan|01|1/x", {"train": "01__x:01 1__x:1 None__x:None nan__x:nan"}),
    ],
)  # fmt: skip
def test_layouts(paths: str, expected: dict[str, str] | None, tmp_path: Path) -> None:
    root = draw(tmp_path / "d", paths)
    if expected is None:
        with pytest.raises(DataError, match="may be a split or a class"):
            folder_source(root, SourceOptions(val_fraction=0))
        return
    info, entries = folder_source(root, SourceOptions(val_fraction=0))
    assert ids_by_split(entries, info.class_names) == expected


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("train|test/1", "are splits and hold no class folders"),
        ("train|background/1", "are splits and hold no class folders"),
        ("Train/1", "are splits and hold no class folders"),
        ("training_set/training_set/1 test_set/test_set/1", "are splits and hold no class folders"),
        ("train/a/1 Valid/a/2 val/a/3", "'Valid' and 'val' in .*d are both the split 'val'"),
        ("a/train/1 a/dev/2 a/validation/3", "'dev' and 'validation' in .*d/a are both the split 'val'"),
        ("train/old/1 cat/1", "'train' in .* may be a split or a class beside 'cat'; say with --layout"),
        ("test/1 cat|dog/1", "'test' in .* may be a split or a class"),
        ("train|test|cat/1", "'test' in .* may be a split or a class"),
        ("valid|invalid/1", "'valid' in .* may be a split or a class beside 'invalid'"),
        ("train/1 test/a|b/1", "the pictures of train lie in no class folder"),
        ("a/train|test/1 b/1", "folder 'a' of .* holds splits .* give .*d/a itself"),
        ("images|masks/train|val/a|b/1", "folder 'images' of .* holds splits"),
        ("cat|dog/1 masks/cat|dog/1", "'masks' of .* if these are masks, give it with --masks"),
        ("images|masks/1", "'images', 'masks' of .* are no classes"),
        (
            "fold1|fold2/a|b/1",
            "'fold1' and 'fold2' of .* both hold 'a', 'b': .* if 'fold1' is a class: ",
        ),
        (
            "seg_train/seg_train/a|b/1 seg_test/seg_test/a|b/1 seg_pred/1",
            "'seg_test/seg_test' and 'seg_train/seg_",
        ),
        ("x/x/train|test/a|b/1 y/y/a|b/1", "folder 'x/x' of .* holds splits .* give .*d/x/x itself"),
        ("train/1 test1/1", "'test1', 'train' of .* are splits and hold no class folders"),
        ("asl_train/asl_train/A|B/1 asl_test/asl_test/1", "'asl_test', 'asl_train' of .* are splits"),
        ("train|valid/images/1", "'images' of .* are no classes"),
        ("background/1", "no pictures in folders below"),
        ("1 2", "no pictures in folders below"),
    ],
)
def test_layouts_that_are_refused(paths: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        folder_source(draw(tmp_path / "d", paths), SourceOptions(val_fraction=0))


def test_a_layout_that_is_said_decides(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "train/old|new/1 cat/old/1")
    info, entries = folder_source(root, SourceOptions(val_fraction=0), layout="class")
    assert ids_by_split(entries, info.class_names) == {
        "train": "cat__old__1:cat train__new__1:train train__old__1:train"
    }
    told: list[str] = []
    info, entries = folder_source(root, SourceOptions(notify=told.append), layout="split/class")
    assert ids_by_split(entries, info.class_names) == {"train": "new__1:new old__1:old"}
    assert told == ["left out: 1 pictures in cat/old, which belong to no class folder"]
    info, entries = folder_source(
        draw(tmp_path / "e", "a/train|test/1 b/1"), SourceOptions(), layout="class/split"
    )
    assert ids_by_split(entries, info.class_names) == {"train": "a__1:a", "test": "a__1:a"}
    for classes, layout in ((None, "class"), (("cat", "dog"), None)):
        days = draw(tmp_path / "f", "cat|dog/day|night/1")
        info, _ = folder_source(days, SourceOptions(classes), layout=layout)
        assert info.class_names == ("cat", "dog")
    # A list that names all folders says as much.
    info, entries = folder_source(root, SourceOptions(classes=("train", "cat"), val_fraction=0))
    assert info.class_names == ("train", "cat")
    assert tags(entries["train"]) == {"cat__old__1": (1,), "train__new__1": (0,), "train__old__1": (0,)}


@pytest.mark.parametrize(
    ("paths", "lines"),
    [
        ("a|b/1", []),
        ("train/a/1 val/a/1", []),
        ("Training/a/1", ["splits: folder 'Training' is train"]),
        ("leaves/oak|pine/1", ["folders: leaves/oak/1.jpg is of class 'oak'"]),
        ("a/train|test/1", ["folders: a/test/1.jpg is of class 'a' in split 'test'"]),
        ("a/1 9 8", ["left out: 2 pictures in the folder itself, which belong to no class folder"]),
        ("train/a/1 test/8", ["left out: 1 pictures in test, which belong to no class folder"]),
        ("crack|Background/1|2", []),
        ("a/old/1 a/2", []),
        ("train|cat/1", ["folder 'train' is taken for a class: pictures lie in it, beside other classes"]),
        (
            "cat|Negatives|no_tumor|unlabeled/1",
            [
                "taken as classes of their own: 'Negatives', 'no_tumor', 'unlabeled'; if that means a "
                "picture without any other class, name it background"
            ],
        ),
        (
            "train/a|b/1 test|val/images/1",
            [
                "left out: 1 pictures in test/images, which belong to no class folder",
                "left out: 1 pictures in val/images, which belong to no class folder",
            ],
        ),
    ],
)
def test_what_is_told(paths: str, lines: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    folder_source(draw(tmp_path / "d", paths), SourceOptions(val_fraction=0, notify=told.append))
    assert told == lines


@pytest.mark.parametrize("place", ["d/masks", "masks", "d/images/masks", "masks/images"])
def test_masks_beside_the_pictures_or_below_a_wrapping_folder(place: str, tmp_path: Path) -> None:
    root, inside = draw(tmp_path / "d", "images/train/cat|dog/1"), tmp_path / place
    (inside / "train" / "cat").mkdir(parents=True)
    Image.fromarray(np.ones((4, 6), np.uint8)).save(inside / "train" / "cat" / "1.png")
    masks = tmp_path / "masks" if place == "masks/images" else inside
    info, entries = folder_source(root, SourceOptions(), masks=masks)
    assert (info.class_names, list(entries)) == (("cat", "dog"), ["train"])
    found = {entry.id: entry.mask for entry in entries["train"] if isinstance(entry, SourceRecord)}
    assert found == {"cat__1": File(inside, "train/cat/1.png"), "dog__1": None}


def test_a_share_of_train_for_validation() -> None:
    train: list[Entry] = [
        SourceRecord(f"{tag}_{number}", b"", tags=(tag,)) for tag in (0, 1) for number in range(10)
    ]
    train.append(Rejection("0_bad", "damaged"))
    told: list[str] = []
    options = SourceOptions(val_fraction=0.2, notify=told.append)
    made = with_validation({"train": train, "test": train[:1]}, options)
    assert {split: len(listed) for split, listed in made.items()} == {"train": 17, "test": 1, "val": 4}
    assert sorted(entry.tags for entry in made["val"] if isinstance(entry, SourceRecord)) == [
        (0,),
        (0,),
        (1,),
        (1,),
    ]
    assert told == ["no split 'val' is there: 4 pictures of 'train' become it (--val-fraction 0.2)"]
    assert with_validation({"train": train, "val": train[:1]}, options) == {"train": train, "val": train[:1]}
    assert with_validation({"test": train}, options) == {"test": train}
    few = SourceOptions(val_fraction=0.01, notify=told.append)
    assert with_validation({"train": train}, few) == {"train": train}
    assert "less than one picture" in told[-1]


def test_masks_are_taken_where_there_are_any(pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "cat" / "old").mkdir(parents=True)
    Image.fromarray(np.ones((4, 6), np.uint8)).save(masks / "cat" / "old" / "3.png")
    _, entries = folder_source(pictures, SourceOptions(val_fraction=0), masks=masks)
    found = {
        entry.id: entry.mask for entry in entries["train"] if isinstance(entry, SourceRecord) and entry.mask
    }
    assert found == {"cat__old__3": File(masks, "cat/old/3.png")}
    with pytest.raises(DataError, match=r"no mask of these pictures .* that of cat/0.jpg would be cat/0.png"):
        folder_source(pictures, SourceOptions(val_fraction=0), masks=pictures / ".git")


def test_classes_from_a_list(pictures: Path) -> None:
    info, entries = folder_source(pictures, SourceOptions(classes=("wolf", "cat"), val_fraction=0))
    assert info.class_names == ("wolf", "cat")
    rejected = [entry for entry in entries["train"] if isinstance(entry, Rejection)]
    assert len(rejected) == 10
    assert "'größer dog' is no class" in rejected[0].reason
    assert tags(entries["train"])["cat__3"] == (1,)


def test_a_class_list_makes_no_folders(tmp_path: Path) -> None:
    for paths in ("1", "background/1"):
        with pytest.raises(DataError, match="no pictures in folders below"):
            folder_source(draw(tmp_path / paths[0], paths), SourceOptions(classes=("cat",)))


def test_folders_that_are_none(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        folder_source(tmp_path / "nowhere", SourceOptions())
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "empty" / "1.jpg")
    with pytest.raises(DataError, match="the layout is CLASS/PICTURE.jpg"):
        folder_source(tmp_path / "empty", SourceOptions())
    (pictures / "linked").symlink_to(tmp_path / "empty")
    with pytest.raises(DataError, match="linked is a link to a folder"):
        folder_source(pictures, SourceOptions())


def test_the_same_name_with_two_endings_is_reported(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/1.png", "b/2.jpg"):
        picture(tmp_path / "d" / name)
    _, entries = folder_source(tmp_path / "d", SourceOptions(val_fraction=0))
    assert [entry.id for entry in entries["train"]] == ["a__1", "a__1", "b__2"]
