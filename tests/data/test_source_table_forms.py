"""Tables as spreadsheets, competitions and public data sets write them."""

from pathlib import Path

import pytest
from PIL import Image

from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import File, SourceOptions, SourceRecord
from cosa_dist.data.sources.table import Columns, table_source


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("image,tags\na.jpg,cat\nb.jpg,dog\n\n ,\n,,\n", {"a": "cat", "b": "dog"}),
        ("sep=;\r\nimage;tags\r\na.jpg;cat, dog\r\nb.jpg;dog\r\n;\r\n", {"a": "cat dog", "b": "dog"}),
        ("image;cat;dog\na.jpg;1,0;0,0\nb.jpg;0,0;1,0\n;;\n", {"a": "cat", "b": "dog"}),
        ("image_id,cat,dog\na,0,1\nb,1,0\n", {"a": "dog", "b": "cat"}),
        ("Image Index,label\na.jpg,cat\nb.JPG,dog\n", {"a": "cat", "b": "dog"}),
        ("ImageID,label\na,cat\nc.0,dog\na.jpg,dog\n", {"a": "cat dog", "c.0": "dog"}),
        (",image,cat,dog,owl\n0,a.jpg,x,,\n1,b.jpg,,x,\n", {"a": "cat", "b": "dog"}),
    ],
)
def test_tables_as_spreadsheets_and_competitions_write_them(
    rows: str, names: dict[str, str], tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.JPG", "c.0.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text(rows)
    columns = Columns(tags="cat,dog,owl") if "owl" in rows else None
    info, entries = table_source(tmp_path, tmp_path / "t.csv", SourceOptions(val_fraction=0), columns=columns)
    made = [entry for entry in entries["train"] if isinstance(entry, SourceRecord)]
    assert {e.id: " ".join(info.class_names[tag] for tag in e.tags or ()) for e in made} == names
    if "a,0,1" in rows:
        assert [(e.image.name, e.image.exists()) for e in made if isinstance(e.image, File)] == [
            ("a.jpg", True),
            ("b.JPG", True),
        ]


def test_splits_and_other_columns_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "t.csv").write_text(
        "set,path,label,width,Unnamed: 0\nTRAIN,a.jpg,x,9,0\nVALIDATION,b.jpg,y,9,1\n,c.jpg,y,9,2\n"
    )
    _, entries = table_source(tmp_path, tmp_path / "t.csv", SourceOptions(val_fraction=0, notify=told.append))
    assert {split: [entry.id for entry in listed] for split, listed in entries.items()} == {
        "train": ["a", "c"],
        "val": ["b"],
    }
    assert told == [
        "column 'set' holds the splits",
        "columns that are not read: width",
        "1 pictures name no split: they are taken as 'train'",
    ]
    (tmp_path / "t.csv").write_text("fold,set,image,label\ntrain,test,a.jpg,x\ntest,train,b.jpg,y\n")
    with pytest.raises(DataError, match="columns 'fold', 'set' of .* hold splits; say with --split-column"):
        table_source(tmp_path, tmp_path / "t.csv", SourceOptions())
    # One split only is the name of something else.
    (tmp_path / "t.csv").write_text("vehicle,image,label\ntrain,a.jpg,x\ntrain,b.jpg,y\n")
    assert set(table_source(tmp_path, tmp_path / "t.csv", SourceOptions(val_fraction=0))[1]) == {"train"}


def test_pictures_without_a_split_are_said_and_an_unlabeled_split_is_none_of_train(tmp_path: Path) -> None:
    rows = "a.jpg,cat,train\nb.jpg,dog,\nc.jpg,dog,unlabeled\nd.jpg,cat,val\n"
    (tmp_path / "t.csv").write_text(f"image,tags,split\n{rows}")
    told: list[str] = []
    _, entries = table_source(tmp_path, tmp_path / "t.csv", SourceOptions(notify=told.append))
    assert {split: [entry.id for entry in listed] for split, listed in entries.items()} == {
        "train": ["a", "b"],
        "unlabeled": ["c"],
        "val": ["d"],
    }
    assert told == ["1 pictures name no split: they are taken as 'train'"]
