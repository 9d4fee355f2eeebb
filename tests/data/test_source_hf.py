"""Hugging Face datasets on disk: every way they are saved, every kind of label, pictures by the cell."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.arrow_writer import ArrowWriter

from cosa_dist.data.decode import encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError, RecordError, Rejection
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.arrow import ArrowCell, open_tables
from cosa_dist.data.sources.hf import HfColumns, hf_source
from cosa_dist.data.sources.record import Entry, SourceOptions, SourceRecord

NAMES = ["cat", "dog", "owl"]
DEFAULT = SourceOptions()


def photo(shade: int) -> bytes:
    return encode_jpeg(np.full((4, 6, 3), shade, dtype=np.uint8))


def mask(value: int) -> bytes:
    return encode_mask(np.full((4, 6), value, dtype=np.uint8))


def dataset(
    count: int = 4, label: Any = None, labels: list[Any] | None = None, masks: bool = False
) -> Dataset:
    """Pictures of growing brightness with class labels 0, 1, 2, 0, ... unless others are given."""
    columns: dict[str, Any] = {"image": [{"bytes": photo(n), "path": None} for n in range(count)]}
    columns["label"] = labels or [n % 3 for n in range(count)]
    kinds = {"image": Image(), "label": label or ClassLabel(names=NAMES)}
    if masks:
        columns["mask"] = [{"bytes": mask(n % 3 + 1), "path": None} for n in range(count)]
        kinds["mask"] = Image()
    return Dataset.from_dict(columns, features=Features(kinds))


def tags(entries: list[Entry]) -> list[tuple[int, ...] | None]:
    return [entry.tags for entry in entries if isinstance(entry, SourceRecord)]


def write_arrow(made: Dataset, path: Path) -> None:
    with ArrowWriter(path=str(path), features=made.features) as writer:
        writer.write_table(made.data.table)
        writer.finalize()


def save(folder: Path, how: str) -> None:
    train, val = dataset(4, masks=True), dataset(3, masks=True)
    if how == "dictionary":
        DatasetDict({"train": train, "validation": val}).save_to_disk(str(folder))
        return
    folder.mkdir()
    for name, made in (("train-00000-of-00001", train), ("validation-00000-of-00001", val)):
        if how == "parquet":
            made.to_parquet(str(folder / f"{name}.parquet"))
        else:
            write_arrow(made, folder / f"{name}.arrow")


@pytest.mark.parametrize("how", ["dictionary", "parquet", "arrow"])
def test_datasets_become_shards_however_they_were_saved(tmp_path: Path, how: str) -> None:
    save(tmp_path / "pets", how)
    info, entries = hf_source(tmp_path / "pets", tmp_path / "cache", DEFAULT)
    assert (info.name, info.class_names) == ("pets", tuple(NAMES))
    assert {split: tags(listed) for split, listed in entries.items()} == {
        "train": [(0,), (1,), (2,), (0,)],
        "val": [(0,), (1,), (2,)],
    }
    entries = pickle.loads(pickle.dumps(entries))  # they travel to other processes
    ingest(entries, info, tmp_path / "out")
    val = open_split(tmp_path / "out", "val")
    assert [val.record(n).image for n in range(3)] == [photo(n) for n in range(3)]
    assert [val.record(n).mask for n in range(3)] == [mask(n + 1) for n in range(3)]
    assert val.ids == ("val_00000000", "val_00000001", "val_00000002")
    assert (tmp_path / "cache").exists() == (how == "parquet")


def test_a_dataset_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    dataset(20).save_to_disk(str(tmp_path / "one"))
    seeds = [SourceOptions(val_fraction=0.25, seed=seed) for seed in (0, 0, 1)]
    chosen = [hf_source(tmp_path / "one", tmp_path / "c", options)[1] for options in seeds]
    assert [len(entries["val"]) for entries in chosen] == [5, 5, 5]
    assert chosen[0]["val"] == chosen[1]["val"] != chosen[2]["val"]
    assert len({entry.id for listed in chosen[0].values() for entry in listed}) == 20


@pytest.mark.parametrize(
    ("label", "labels", "names", "expected"),
    [
        (List(ClassLabel(names=NAMES)), [[0, 2], [], [1]], tuple(NAMES), [(0, 2), (), (1,)]),
        (ClassLabel(names=NAMES), [2, -1, 0], tuple(NAMES), [(2,), (), (0,)]),
        (Value("int64"), [10, 9, 10], ("9", "10"), [(1,), (0,), (1,)]),
        (List(Value("int32")), [[3, 1], [], [3]], ("1", "3"), [(0, 1), (), (1,)]),
        (Value("string"), ["b;a", "a", None], ("a", "b"), [(0, 1), (0,), ()]),
        (List(Value("string")), [["b"], ["a", "b"], None], ("a", "b"), [(1,), (0, 1), ()]),
    ],
)
def test_every_kind_of_label(
    tmp_path: Path, label: Any, labels: list[Any], names: tuple[str, ...], expected: list[tuple[int, ...]]
) -> None:
    DatasetDict({"train": dataset(3, label, labels)}).save_to_disk(str(tmp_path / "d"))
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", DEFAULT)
    assert info.class_names == names
    assert tags(entries["train"]) == expected


def test_several_label_columns_and_ids(tmp_path: Path) -> None:
    made = dataset(3).add_column("colour", ["red", "", "blue"]).add_column("id", ["x", "y", "../z"])
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
    columns = HfColumns(labels=("label", "colour"))
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", DEFAULT, columns)
    assert info.class_names == ("blue", "cat", "dog", "owl", "red")
    assert [(e.id, e.tags) for e in entries["train"] if isinstance(e, SourceRecord)] == [
        ("x", (1, 4)),
        ("y", (2,)),
    ]
    (bad,) = [entry for entry in entries["train"] if isinstance(entry, Rejection)]
    assert "leaves its folder" in bad.reason


def test_tags_from_masks_where_there_are_no_labels(tmp_path: Path) -> None:
    DatasetDict({"val": dataset(3, masks=True).remove_columns("label")}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="--classes FILE"):
        hf_source(tmp_path / "d", tmp_path / "c", DEFAULT)
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(classes=("a", "b", "c")))
    ingest(entries, info, tmp_path / "out")
    assert open_split(tmp_path / "out", "val").class_counts == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    "label",
    [List(Value("int64")), List(Value("float32")), List(Value("bool")), List(Value("int8"), length=3)],
)
def test_label_vectors_need_names(tmp_path: Path, label: Any) -> None:
    DatasetDict({"train": dataset(2, label, [[0, 1, 1], [1, 0, 0]])}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="label vectors of 3 places.*--classes FILE"):
        hf_source(tmp_path / "d", tmp_path / "c", DEFAULT)
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(classes=("b", "a", "c")))
    assert info.class_names == ("b", "a", "c")
    assert tags(entries["train"]) == [(1, 2), (0,)]


def test_columns_that_are_classes(tmp_path: Path) -> None:
    made = (
        dataset(3).remove_columns("label").add_column("dog", [1, 0, 1]).add_column("cat", [True, False, None])
    )
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
    told: list[str] = []
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(notify=told.append))
    assert (info.class_names, tags(entries["train"])) == (("cat", "dog"), [(0, 1), (), (1,)])
    assert told == ["columns 'dog', 'cat' hold 0 and 1: each is a class, shown where it is 1"]


@pytest.mark.parametrize(
    ("names", "masks", "expected"),
    [
        (["background", "cat", "dog"], True, [(), (0,), (1,)]),
        (["_background_", "cat", "dog"], True, [(), (0,), (1,)]),
        (["background", "cat", "dog"], False, [(), (0,), (1,)]),
        (["cat", "Background", "dog"], False, [(0,), (), (1,)]),
    ],
)
def test_a_class_label_of_background_is_no_tag(
    tmp_path: Path, names: list[str], masks: bool, expected: list[tuple[int, ...]]
) -> None:
    made = dataset(3, ClassLabel(names=names), masks=masks)
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
    told: list[str] = []
    info, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(notify=told.append))
    assert (info.class_names, tags(entries["train"])) == (("cat", "dog"), expected)
    assert "no tag" in told[0]


def test_class_labels_that_leave_the_ids_of_the_masks_open(tmp_path: Path) -> None:
    late = dataset(3, ClassLabel(names=["cat", "background", "dog"]), masks=True)
    DatasetDict({"train": late}).save_to_disk(str(tmp_path / "late"))
    with pytest.raises(DataError, match="'background' .* is not the first.*--classes FILE"):
        hf_source(tmp_path / "late", tmp_path / "c", DEFAULT)
    info, entries = hf_source(tmp_path / "late", tmp_path / "c", SourceOptions(classes=("cat", "dog")))
    assert (info.class_names, tags(entries["train"])) == (("cat", "dog"), [(0,), (), (1,)])


@pytest.mark.parametrize(
    ("val", "words"),
    [
        (dataset(2, ClassLabel(names=["owl", "cat", "bee"])), "number the classes differently in column 'la"),
        (dataset(2, Value("int64")), "hold other things in column 'label'"),
        (dataset(2).remove_columns("label"), "split 'val' .* has no column 'label'"),
    ],
)
def test_splits_have_the_same_labels(tmp_path: Path, val: Dataset, words: str) -> None:
    DatasetDict({"train": dataset(2), "val": val}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=words):
        hf_source(tmp_path / "d", tmp_path / "c", DEFAULT)


@pytest.mark.parametrize("how", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("second", "words"),
    [
        (ClassLabel(names=["owl", "dog", "cat"]), "number the classes differently in column 'label'"),
        (ClassLabel(names=[*NAMES, "bee"]), "number the classes differently in column 'label'"),
        (Value("int64"), "hold other things in column 'label'"),
        (None, "hold other things in column 'label'"),
    ],
)
def test_files_of_one_split_that_differ_are_refused_as_that(
    tmp_path: Path, how: str, second: Any, words: str
) -> None:
    parts = [dataset(3), dataset(3, second) if second else dataset(3).remove_columns("label")]
    for number, part in enumerate(parts):
        path = tmp_path / f"train-{number}.{how}"
        part.to_parquet(str(path)) if how == "parquet" else write_arrow(part, path)
    with pytest.raises(DataError, match=f"train-0.{how} and .*train-1.{how} {words}"):
        hf_source(tmp_path, tmp_path / "c", DEFAULT)


def repeated(ids: list[Any], shades: list[int], masks: list[int | None]) -> Dataset:
    """Pictures with ids, so that one may come in several rows, with the tags 0, 1, 2."""
    columns = {
        "image": [{"bytes": photo(shade), "path": None} for shade in shades],
        "id": ids,
        "label": [0, 1, 2],
        "mask": [None if value is None else {"bytes": mask(value), "path": None} for value in masks],
    }
    kinds = {"image": Image(), "id": Value("string"), "label": ClassLabel(names=NAMES), "mask": Image()}
    return Dataset.from_dict(columns, Features(kinds))


@pytest.mark.parametrize(
    ("ids", "shades", "masks", "expected"),
    [
        (["x", "x", "y"], [0, 0, 40], [1, 1, 3], [("x", (0, 1), True), ("y", (2,), True)]),
        (["x", "x", "y"], [0, 0, 40], [None, 2, None], [("x", (0, 1), True), ("y", (2,), False)]),
        (["x", "x", "y"], [0, 0, 40], [1, 2, 3], ["several masks", ("y", (2,), True)]),
        (["x", "x", "y"], [0, 80, 40], [1, 1, 3], ["several pictures", ("y", (2,), True)]),
        (["x", None, None], [0, 0, 0], [1, 1, 1], [("x", (0,), True), "no id", "no id"]),
    ],
)
def test_rows_of_one_id_and_picture_are_one_record(
    tmp_path: Path, ids: list[Any], shades: list[int], masks: list[int | None], expected: list[Any]
) -> None:
    DatasetDict({"train": repeated(ids, shades, masks)}).save_to_disk(str(tmp_path / "d"))
    told: list[str] = []
    _, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(notify=told.append))
    assert len(entries["train"]) == len(expected)
    for entry, wanted in zip(entries["train"], expected, strict=True):
        if isinstance(entry, Rejection):
            assert wanted in entry.reason
        else:
            assert (entry.id, entry.tags, entry.mask is not None) == wanted
    assert len(told) == (len(expected) < 3)


def test_rows_of_one_path_are_one_record(tmp_path: Path) -> None:
    columns = {"image": ["a.jpg", "b.jpg", "a.jpg"], "label": ["cat", "dog", "owl"]}
    write_arrow(Dataset.from_dict(columns), tmp_path / "train.arrow")
    _, entries = hf_source(tmp_path, tmp_path / "c", DEFAULT)
    assert tags(entries["train"]) == [(0, 2), (1,)]


@pytest.mark.parametrize("name", ["label", "labels", "annotation", "segmentation_mask", "masks"])
def test_a_column_of_pictures_is_masks_and_never_tags(tmp_path: Path, name: str) -> None:
    made = dataset(3, masks=True).remove_columns("label").rename_column("mask", name)
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
    told: list[str] = []
    options = SourceOptions(tuple(NAMES), notify=told.append)
    for columns in (HfColumns(), HfColumns(mask=name)):
        info, entries = hf_source(tmp_path / "d", tmp_path / "c", options, columns)
        ingest(entries, info, tmp_path / f"out{columns.mask}")
        assert open_split(tmp_path / f"out{columns.mask}", "train").class_counts == dict.fromkeys(NAMES, 1)
    assert told == [f"column '{name}' holds pictures: they are taken as the masks"]
    for classes, columns in ((None, HfColumns()), (tuple(NAMES), HfColumns(labels=(name,)))):
        with pytest.raises(DataError, match="--classes FILE|--mask-column names masks") as caught:
            hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(classes=classes), columns)
        assert "PNG" not in str(caught.value)


def test_columns_of_other_things_are_refused_by_name(tmp_path: Path) -> None:
    made = dataset(2).add_column("boxes", [{"x": [1], "kind": "cat"}] * 2).add_column("grid", [[[1]], [[2]]])
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
    for columns, words in (
        (HfColumns(labels=("boxes",)), "'boxes' of .* holds no tags"),
        (HfColumns(mask="grid"), "'grid' of .* holds neither pictures nor their paths"),
        (HfColumns(image="label"), "'label' of .* holds neither pictures nor their paths"),
    ):
        with pytest.raises(DataError, match=words):
            hf_source(tmp_path / "d", tmp_path / "c", DEFAULT, columns)


def test_masks_of_some_splits_only_are_taken(tmp_path: Path) -> None:
    splits = {"train": dataset(2), "val": dataset(2, masks=True)}
    DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    told: list[str] = []
    _, entries = hf_source(tmp_path / "d", tmp_path / "c", SourceOptions(notify=told.append))
    found = {split: [bool(entry.mask) for entry in listed] for split, listed in entries.items()}  # type: ignore[union-attr]
    assert found == {"train": [False, False], "val": [True, True]}
    assert told == ["split 'train' has no column 'mask': its pictures have no mask"]


def test_pictures_by_path_stay_in_the_datasets_folder(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "in.jpg").write_bytes(photo(3))
    (tmp_path / "secret.jpg").write_bytes(photo(4))
    paths = [str(folder / "in.jpg"), "in.jpg", str(tmp_path / "secret.jpg"), "../secret.jpg", None]
    made = Dataset.from_dict(
        {"image": paths, "label": ["a"] * 5}, Features({"image": Value("string"), "label": Value("string")})
    )
    write_arrow(made, folder / "train.arrow")
    _, entries = hf_source(folder, tmp_path / "c", DEFAULT)
    cells = [entry.image for entry in entries["train"] if isinstance(entry, SourceRecord)]
    assert all(isinstance(cell, ArrowCell) for cell in cells)
    assert [cell.read() for cell in cells[:2]] == [photo(3)] * 2  # type: ignore[union-attr]
    for cell, words in zip(cells[2:], ("leaves its folder", "leaves its folder", "neither"), strict=True):
        with pytest.raises(RecordError, match=words):
            cell.read()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("Training-0.arrow", "TEST_set.arrow"), {"train", "test"}),
        (("cifar10-train.arrow", "cifar10-test.arrow"), {"train", "test"}),
        (("default/train/0000.arrow", "default/valid/0000.arrow"), {"train", "val"}),
        (("train2017.arrow", "my.val2017.arrow"), {"train", "val"}),
        (("validation-00000-of-00002.arrow", "validation-00001-of-00002.arrow"), {"val"}),
        (("data-0.arrow", "data-1.arrow"), {""}),
    ],
)
def test_splits_by_the_names_of_files(files: tuple[str, ...], splits: set[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        write_arrow(dataset(2), tmp_path / "d" / name)
    tables = open_tables(tmp_path / "d", tmp_path / "c")
    assert tables.keys() == splits
    assert sum(len(table.files) for table in tables.values()) == 2


def test_two_saved_splits_of_one_kind_are_refused(tmp_path: Path) -> None:
    DatasetDict({"Valid": dataset(2), "val": dataset(2)}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="split 'val' is a second split 'val'; rename one"):
        open_tables(tmp_path / "d", tmp_path / "c")


def test_datasets_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Hugging Face dataset in"):
        open_tables(tmp_path / "empty", tmp_path / "c")
    for name in ("train.arrow", "more.arrow"):
        write_arrow(dataset(2), tmp_path / "empty" / name)
    with pytest.raises(DataError, match="belongs to no split"):
        open_tables(tmp_path / "empty", tmp_path / "c")
    (tmp_path / "bad.arrow").write_bytes(b"noise")
    with pytest.raises(DataError, match="damaged"):
        hf_source(tmp_path / "bad.arrow", tmp_path / "c", DEFAULT)
    (tmp_path / "bad.parquet").write_bytes(b"noise")
    with pytest.raises(DataError, match="damaged") as caught:
        hf_source(tmp_path / "bad.parquet", tmp_path / "c", DEFAULT)
    assert "\n" not in str(caught.value)
    dataset(2).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"no column 'labell' \(did you mean 'label'\?\)"):
        hf_source(tmp_path / "d", tmp_path / "c", DEFAULT, HfColumns(labels=("labell",)))
    dataset(2).rename_column("image", "x").save_to_disk(str(tmp_path / "e"))
    _, entries = hf_source(tmp_path / "e", tmp_path / "c", SourceOptions(val_fraction=0))
    assert len(entries["train"]) == 2  # the only pictures
    dataset(2).remove_columns("image").save_to_disk(str(tmp_path / "f"))
    with pytest.raises(DataError, match="--image-column"):
        hf_source(tmp_path / "f", tmp_path / "c", DEFAULT)
