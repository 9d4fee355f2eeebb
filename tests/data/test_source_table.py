"""Tables of tags in every form: the same rows give the same records, and mistakes are named by row."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.sources.classes import class_names_of, read_class_names
from cosa_dist.data.sources.record import Entry, File, SourceOptions, SourceRecord, Tags
from cosa_dist.data.sources.table import Columns, read_table, table_source
from cosa_dist.data.sources.tags import column_tags

ROWS: list[dict[str, Any]] = [
    {"image": "a.jpg", "tags": ["dog", "cat"], "split": "train"},
    {"image": "inner/für.jpg", "tags": ["Bär"], "split": "valid"},
    {"image": "c.jpg", "tags": [], "split": "train"},
]


def write_csv(
    path: Path, separator: str = ",", ends: str = "\r\n", joined: str = ";", bom: bool = True
) -> None:
    made = io.StringIO()
    writer = csv.writer(made, delimiter=separator, lineterminator=ends)
    writer.writerow(ROWS[0])
    for row in ROWS:
        writer.writerow([row["image"], joined.join(row["tags"]), row["split"]])
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + made.getvalue().encode())


def write_table(path: Path, kind: str) -> None:
    if kind == "csv ;":
        write_csv(path, separator=";", joined=", ")
    elif kind == "csv |":
        write_csv(path, joined="|", ends="\n", bom=False)
    elif kind == "csv ,":
        write_csv(path)
    elif kind == "tsv":
        write_csv(path, separator="\t", joined=",")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        path.write_text(
            "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n\n", "utf-8-sig"
        )
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)


def shown(entries: dict[str, list[Entry]]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        split: [(e.id, e.tags) if isinstance(e, SourceRecord) else (e.id, e.reason, e.where) for e in listed]
        for split, listed in entries.items()
    }


@pytest.mark.parametrize("kind", ["csv ,", "csv ;", "csv |", "tsv", "json", "jsonl", "parquet"])
def test_every_form_of_table_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    table = tmp_path / f"pets.{kind.split()[0]}"
    write_table(table, kind)
    info, entries = table_source(tmp_path, table, SourceOptions())
    assert (info.name, info.class_names) == ("pets", ("Bär", "cat", "dog"))
    assert shown(entries) == {"train": [("a", (1, 2)), ("c", ())], "val": [("inner__für", (0,))]}
    (record,) = entries["val"]
    assert isinstance(record, SourceRecord)
    assert record.image == File(tmp_path, "inner/für.jpg")


def tags_of(cell: Any, *classes: str) -> Tags:
    return column_tags([cell], "tags", SourceOptions(classes or None), alone=False)[0]


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ("cat;dog", ("cat", "dog")),
        (" cat | dog|cat ", ("cat", "dog")),
        ("cat, dog,", ("cat", "dog")),
        ("traffic light, red;dog", ("traffic light, red", "dog")),
        ("red, or green", ("red, or green",)),
        ("", ()),
        (None, ()),
        (["a;b", "c"], ("a;b", "c")),
        (3, ("3",)),
        (3.0, ("3",)),
        ([1, 2], ("1", "2")),
    ],
)
def test_cells_of_tags(cell: Any, tags: tuple[str, ...]) -> None:
    assert tags_of(cell, "red, or green") == tags


@pytest.mark.parametrize("cell", [{"a": 1}, [["a"]], [{}], 0.5])
def test_cells_that_hold_no_tags(cell: Any) -> None:
    assert "mend the row" in tags_of(cell)


@given(
    tags=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Nd"), exclude_characters=";|,[({"), min_size=1)
    )
)
def test_joined_tags_are_parted_again(tags: list[str]) -> None:
    expected = tags_of(tags)
    for separator in (";", "|", ","):
        assert tags_of(separator.join(tags)) == expected


def test_bad_rows_are_named(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [
        {"image": "../secret.jpg", "tags": "cat"},
        {"image": None, "tags": "cat"},
        {"image": "b.jpg", "tags": "cta"},
        {"image": "c.jpg", "tags": {"cat": 1}},
        {"image": "d.jpg"},
        {"image": "e.jpg", "tags": "cat", "mask": "../m.png"},
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    _, entries = table_source(tmp_path, table, SourceOptions(classes=("cat",), val_fraction=0))
    found = {entry.where: entry.reason for entry in entries["train"] if isinstance(entry, Rejection)}
    assert list(found) == [f"t.jsonl, row {number}" for number in (1, 2, 3, 4, 6)]
    words = (
        "leaves its folder",
        "is empty",
        "tag 'cta' is no class",
        "neither text nor a list",
        "leaves its folder",
    )
    assert all(word in reason for word, reason in zip(words, found.values(), strict=True))
    assert [entry.tags for entry in entries["train"] if isinstance(entry, SourceRecord)] == [()]


def test_columns_are_asked_for_by_name(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("shot,subject,part\na.jpg,cat,test\n")
    with pytest.raises(DataError, match="shot, subject, part; say with --image-column"):
        table_source(tmp_path, table, SourceOptions())
    with pytest.raises(DataError, match=r"no column 'subjekt' \(did you mean 'subject'\?\).*--tags-column"):
        table_source(tmp_path, table, SourceOptions(), columns=Columns("shot", "subjekt"))
    _, entries = table_source(tmp_path, table, SourceOptions(), columns=Columns("shot", "subject", "part"))
    assert shown(entries) == {"test": [("a", (0,))]}


FLAGS = "filename, Cat, Dog, Bird\na.jpg, 1, 0, 0\nb.jpg, 1, 1, 0\nc.jpg, 0, 0, 0\n"


@pytest.mark.parametrize(
    ("content", "asked", "classes", "names", "tags"),
    [
        (FLAGS, None, None, ("Bird", "Cat", "Dog"), [(1,), (1, 2), ()]),
        (FLAGS, "Cat, Dog", None, ("Cat", "Dog"), [(0,), (0, 1), ()]),
        (FLAGS, None, ("dog", "cat", "bird"), ("dog", "cat", "bird"), [(1,), (0, 1), ()]),
        ("image,h,cat,dog\na.jpg,9,1,0\n", None, ("dog", "cat"), ("dog", "cat"), [(1,)]),
        (
            "Unnamed: 0,image,cat,dog\n0,a.jpg,1.0,\n1,b.jpg,0.0,True\n",
            None,
            None,
            ("cat", "dog"),
            [(0,), (1,)],
        ),
        ("file,smiling,young\na.jpg,-1,1\nb.jpg,-1,-1\n", None, None, ("smiling", "young"), [(1,), ()]),
        ("image,background,cat,unlabeled\na.jpg,1,1,0\nb.jpg,1,0,1\n", None, None, ("cat",), [(0,), ()]),
        ("image,cat,dog\na.jpg,x,\nb.jpg,x,X\n", None, None, ("cat", "dog"), [(0,), (0, 1)]),
        ("image,tag1,tag2\na.jpg,cat,dog\nb.jpg,cat,\n", "tag1,tag2", None, ("cat", "dog"), [(0, 1), (0,)]),
        ('image,"a,b"\na.jpg,cat\n', "a,b", None, ("cat",), [(0,)]),
    ],
)
def test_columns_that_are_classes(
    tmp_path: Path, content: str, asked: str | None, classes: Any, names: tuple[str, ...], tags: list[Any]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(content)
    told: list[str] = []
    info, entries = table_source(
        tmp_path,
        table,
        SourceOptions(classes=classes, val_fraction=0, notify=told.append),
        columns=Columns(tags=asked),
    )
    assert info.class_names == names
    assert [entry.tags for entry in entries["train"] if isinstance(entry, SourceRecord)] == tags
    assert bool(told) == ("tag1" not in content and "a,b" not in content)


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        (
            "image,height,cat,dog\na.jpg,30,1,0\n",
            None,
            r"--tags-column which to take \(of 0 and 1: cat,dog\)",
        ),
        ("image,height,cat\na.jpg,30,1\n", "cat,height", "only 'cat' hold 0 and 1; name columns of one kind"),
        ("image,cat,dog\na.jpg,1,0\n", "cat,dgo", r"no column 'dgo' \(did you mean 'dog'\?\)"),
        ("image,crack\na.jpg,1\nb.jpg,0\n", None, "with --classes FILE name the one class"),
        ("image,cat,dog\na.jpg,2,0\nb.jpg,1,3\n", "cat,dog", "hold numbers other than 0 and 1"),
        ("image,tags\na.jpg,0.93\nb.jpg,1\n", None, "numbers such as 0.93, which name no classes"),
        ("image,tags,tags\na.jpg,cat,dog\n", None, "two columns 'tags'"),
    ],
)
def test_columns_that_may_be_classes(tmp_path: Path, content: str, asked: str | None, words: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        table_source(tmp_path, tmp_path / "t.csv", SourceOptions(), columns=Columns(tags=asked))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a.jpg,cat,,\na.jpg,dog,,\n./a.jpg,cat,,\nb.jpg,,,\n", {"train": [("a", (0, 1)), ("b", ())]}),
        ("a.jpg,dog,,\nb.jpg,cat,,\na.jpg,dog,,\n", {"train": [("a", (1,)), ("b", (0,))]}),
        (
            "a.jpg,cat,valid,\na.jpg,dog,,\na.jpg,,val,m.png\nb.jpg,cat,train,\n",
            {"val": [("a", (0, 1))], "train": [("b", (0,))]},
        ),
    ],
)
def test_rows_of_one_picture_are_one_record(tmp_path: Path, rows: str, expected: dict[str, Any]) -> None:
    (tmp_path / "t.csv").write_text(f"image,tags,split,mask\n{rows}")
    told: list[str] = []
    info, entries = table_source(
        tmp_path, tmp_path / "t.csv", SourceOptions(val_fraction=0, notify=told.append)
    )
    assert info.class_names == ("cat", "dog")
    assert shown(entries) == expected
    assert len(told) == 1
    assert "1 pictures are in several rows, such as" in told[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.jpg,cat,train,\na.jpg,dog,val,\n", r"several splits \(train, val\)"),
        ("a.jpg,cat,,m1.png\na.jpg,dog,,m2.png\n", r"several masks \(m1.png, m2.png\)"),
        ("a.jpg,cat,,\na.jpg,{'x': 1},,\n", "no complete list"),
        ("a.jpg,cat,,\na.jpg,owl,,\n", "tag 'owl' is no class"),
    ],
)
def test_rows_that_contradict_each_other_are_left_out_together(tmp_path: Path, rows: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(f"image,tags,split,mask\n{rows}b.jpg,cat,train,\n")
    _, entries = table_source(
        tmp_path, tmp_path / "t.csv", SourceOptions(classes=("cat", "dog"), val_fraction=0)
    )
    bad, good = entries["train"]
    assert isinstance(bad, Rejection)
    assert re.search(words, bad.reason)
    assert isinstance(good, SourceRecord)


def test_pictures_inside_a_table_belong_to_another_source(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"\x89PNG"], "tags": ["cat"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"has columns tags; .* `ingest.py hf`\)$"):
        table_source(tmp_path, tmp_path / "t.parquet", SourceOptions())


def test_masks_by_column_and_by_name(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (4, 4)).save(masks / "a.png")
    table = tmp_path / "t.csv"
    table.write_text("image,tags,mask\na.jpg,cat,\nb.jpg,cat,named.png\nc.jpg,cat,\n")
    _, entries = table_source(tmp_path, table, SourceOptions(val_fraction=0), masks=masks)
    found = [entry.mask for entry in entries["train"] if isinstance(entry, SourceRecord)]
    assert found == [File(masks, "a.png"), File(masks, "named.png"), None]


def test_a_seeded_split_where_none_is_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,tags\n" + "".join(f"{number}.jpg,cat\n" for number in range(50)))
    splits = [
        shown(table_source(tmp_path, table, SourceOptions(val_fraction=0.3, seed=seed))[1])
        for seed in (1, 1, 2)
    ]
    assert [len(split["val"]) for split in splits] == [15, 15, 15]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"image,tags\n\xff\xfe,x\n", "not UTF-8"),
        ("t.csv", b"image,tags\n", "has no rows"),
        ("t.csv", b"image,tags\na.jpg,\n", "no tag in table"),
        (
            "t.csv",
            b'image,tags\na.jpg,"{""a"":{""b"":1}}"\n',
            "row 2: tags are no complete list",
        ),
        (
            "t.csv",
            b"a.jpg,cat\nb.jpg,dog\n",
            "cat; write the columns' names into",
        ),
        (
            "t.csv",
            b"ImageID,label,Confidence\na,x,1\na,y,0\n",
            "line 3: column 'Confidence' says",
        ),
        ("t.json", b"{}", "not a list of objects"),
        ("t.json", b"[1]", "row 1 is not an object"),
        ("t.json", b'[{"image":', "is not JSON"),
        ("t.jsonl", b'{"image": "a"}\n{"image"\n', "line 2 is not JSON"),
        ("t.parquet", b"PAR1 or not", "not readable Parquet"),
        ("t.xlsx", b"PK", "save a spreadsheet as CSV"),
        ("t.csv.gz", b"\x1f\x8b", "unpack what is compressed"),
        ("t.json", b'{"images": []}', "not a list of objects"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    columns = Columns("image", "image") if b'"image": "a"' in content else None
    with pytest.raises(DataError, match=words) as caught:
        table_source(tmp_path, tmp_path / name, SourceOptions(), columns=columns)
    assert "\n" not in str(caught.value)


@given(content=st.binary(max_size=200), ending=st.sampled_from([".csv", ".json", ".jsonl", ".parquet"]))
def test_any_bytes_give_rows_or_one_clear_error(tmp_path_factory: Any, content: bytes, ending: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(content)
    said, table = "", None
    try:
        table = read_table(path)
    except DataError as error:
        said = str(error)
    assert not said or str(path) in said
    assert table is None or {len(cells) for cells in table.columns.values()} <= {len(table.numbers)}


def test_a_column_of_splits_in_any_usual_spelling(tmp_path: Path) -> None:
    names = (
        "Training",
        " TRAIN",
        "train_set",
        "train2017",
        "Valid",
        "validation",
        "TEST",
        "evaluation",
        "extra",
    )
    rows = "".join(f"{number}.jpg,cat,{name}\n" for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(f"image,tags,split\n{rows}")
    _, entries = table_source(tmp_path, tmp_path / "t.csv", SourceOptions())
    assert {split: [entry.id for entry in listed] for split, listed in entries.items()} == {
        "train": ["0", "1", "2", "3"],
        "val": ["4", "5"],
        "test": ["6", "7"],
        "extra": ["8"],
    }


def test_lists_of_class_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffbackground\r\nzebra \r\n\r\nBär\r\n".encode())
    assert read_class_names(path) == ("zebra", "Bär")
    path.write_text("a\nb\na\n")
    with pytest.raises(DataError, match="'a' twice"):
        read_class_names(path)
    for content, words in ((b"\n", "names no class"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_class_names(path)
    with pytest.raises(DataError, match="no file of class names"):
        read_class_names(tmp_path / "absent")
    assert class_names_of([["10", "b"], ["9", "a"]], "here") == ("9", "10", "a", "b")
