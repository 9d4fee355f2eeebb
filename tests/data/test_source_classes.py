"""Files of class names as people and other tools write them: the ids of masks, or a refusal."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosa_dist.data.catalog import is_background
from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.classes import read_class_names

CATS = ("cat", "dog")
CVAT = "# label:color_rgb:parts:actions\n"


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("labels.txt", "__ignore__\n_background_\ncat\ndog\n", CATS),  # labelme
        ("labels.txt", "_background_\r\ncat\r\ndog", CATS),
        ("names.txt", "BACKGROUND\ncat\n\ndog", CATS),
        ("labelmap.txt", CVAT + "background:0,0,0::\ncat:1,2,3::\ndog:4,5,6::", CATS),
        ("labelmap.txt", "background:0,0,0::\ncat:1,2,3:head,tail:run\nignored:224,224,192::", ("cat",)),
        ("labelmap.txt", "background:::\ntraffic light:::", ("traffic light",)),
        ("labelmap.txt", "background:0,0,0\ncat:1,2,3", ("cat",)),
        ("names.txt", "0 background\n1 cat\n2 dog", CATS),
        ("names.txt", "2: dog\n0: background\n1: cat\n255: void", CATS),
        ("names.txt", "-1=__ignore__\n0=_background_\n1=cat\n2=dog", CATS),
        ("names.txt", "1. cat\n2. dog", CATS),
        ("classes.txt", "1 001.Black_Albatross\n2 002.Auklet", ("001.Black_Albatross", "002.Auklet")),
        ("names.txt", "background 0\ndog 2\ncat 1", CATS),
        ("names.txt", "cat: 1\ndog: 2", CATS),
        ("names.tsv", "0\tbackground\n1\tcat\n2\tdog", CATS),
        ("data.yaml", "train: ../train\nnc: 2\nnames: ['dog', 'cat']\n", ("dog", "cat")),  # YOLO
        ("data.yaml", "names:\n  0: no\n  1: nan\n  2: 01\n", ("no", "nan", "01")),
        ("data.yml", "- cat\n- dog\n", CATS),
        ("obj.names", "zebra\ncat", ("zebra", "cat")),
        ("names.json", '["background", "cat", "dog"]', CATS),
        ("names.json", '{"0": "background", "2": "dog", "1": "cat"}', CATS),
        ("names.json", '{"dog": 2, "cat": 1}', CATS),
        ("names.json", '{"id2label": {"0": "background", "1": "caf\\u00e9"}}', ("café",)),
        ("coco.json", '{"categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]}', CATS),
        ("dataset.json", '{"format": "x", "class_names": ["zebra", "cat"]}', ("zebra", "cat")),
        ("names.json", "[1, 2.0, NaN]", ("1", "2.0", "NaN")),
        ("names.txt", "['cat', 'dog']", CATS),
        ("class_dict.csv", "name,r,g,b\nAnimal,64,128,64\nArchway,192,0,128\n", ("Animal", "Archway")),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncat,1,2,3", ("cat",)),
        ("names.csv", "Class Name;Class ID\nbackground;0\ncat;1", ("cat",)),
        ("names.csv", "label,name\n2,dog\n1,cat", CATS),
        ("names.csv", ",name\n0,cat\n1,dog", CATS),
        ("names.csv", "name,id,category\nbackground,0,void\ncat,1,a\ndog,2,a", CATS),
        ("names.csv", "name\ncat\ndog", CATS),
        ("names.csv", '"tench, Tinca",1\n"cat",2', ("tench, Tinca", "cat")),
        ("colours.txt", "64 128 64\tAnimal\n192 0 128\tTraffic Cone", ("Animal", "Traffic Cone")),
        ("colours.txt", "Animal 64 128 64\nTraffic Cone 192 0 128", ("Animal", "Traffic Cone")),
        ("colours.csv", "background,0,0,0,0\nbus 3,1,0,9,0\n7 up,2,0,0,9", ("bus 3", "7 up")),
        ("colours.txt", "0,background,0,0,0\n1,bus 3,0,9,0", ("bus 3",)),
        ("names.txt", "0. background\n1. airbus 320\n2. 7 up", ("airbus 320", "7 up")),
        ("names.txt", "0: background\n1: airbus 320\n2: cat", ("airbus 320", "cat")),
        ("names.txt", "* cat\n* dog", CATS),
        ("names.txt", '"cat",\n"dog"', CATS),
        ("names.txt", "'traffic light'\ncat,", ("traffic light", "cat")),
        ("names.txt", "# my classes\ncat\ndog  # and wolves", CATS),
        ("names.txt", "- cat\n- dog", CATS),
        ("names.txt", "cat,dog", CATS),
    ],
)  # fmt: skip
def test_lists_of_other_tools(name: str, text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    told: list[str] = []
    assert read_class_names(tmp_path / name, told.append) == names
    if name != "obj.names":
        assert [line.startswith(f"classes of {name}: 1 {names[0]}") for line in told] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog",
        "nan\nNone\n01\n1",
        "0\n1\n2",
        "traffic light\nhot dog",
        "2 door\n4 door",
        "1 euro\n2 euro",
        "1 euro\n2 euro\n1 cent",
        "class 1\nclass 2",
        "boeing 747\nairbus 320",
        "tench, Tinca tinca\ngoldfish, Carassius, red",
        "#beach\n#sea",
        "name\nid",
        "C\nc\nvoid",
        "bg\nbackground noise",
    ],
)
def test_names_are_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    told: list[str] = []
    assert read_class_names(tmp_path / "names.txt", told.append) == tuple(text.split("\n"))
    assert told == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("names.txt", "cat\nbackground\ndog", "'background' is name 2 of the list, so the ids are unclear"),
        ("names.txt", "cat\ndog\n_Background_", "'_Background_' is name 3"),
        ("names.txt", "background\ncat\n_background_", "'_background_' is name 3"),
        ("labels.txt", "__ignore__\ncat\ndog", "'__ignore__' is name 1 of the list"),
        ("labels.txt", "_background_\ncat\n__ignore__", "'__ignore__' is name 3"),
        ("labelmap.txt", CVAT + "tree:1,2,3::\nbackground:0,0,0::", "'background' is name 2"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,3\nbackground,0,0,0", "'background' is name 2"),
        ("names.txt", "0 cat\n1 dog", "'cat' has id 0, but id 0 is background"),
        ("names.json", '{"cat": 0, "dog": 1}', "'cat' has id 0"),
        ("names.json", '{"0": "cat", "1": "background"}', "'cat' has id 0"),
        ("names.txt", "1: cat\n2: background", "'background' has id 2"),
        ("names.txt", "0 background\n1 cat\n3 dog", r"2 classes have the ids 1\.\.2, not 1\.\.3"),
        ("names.txt", "1: cat\n1: dog", "'dog' no id, or the id of another name"),
        ("names.json", '[{"id": 1, "name": "cat"}, {"name": "dog"}]', "'dog' no id"),
        ("names.json", '{"a": {"b": 1}}', "neither a list of names nor names with ids"),
        ("names.json", "[null]", "neither a list of names"),
        ("names.json", "cat", "neither a list of names"),
        ("names.yaml", "a: [", "neither a list of names"),
        ("names.json", "[" * 100_000, "neither a list of names"),
        ("_classes.csv", "filename,Cat,Dog\na.jpg,0,1", "no column is surely that of the names"),
        ("obj.data", "classes = 2\ntrain = data/train.txt\nnames = obj.names", "holds settings or code"),
        ("voc.py", "METAINFO = dict(\n  classes=('cat', 'dog'),\n)", "or code such as 'METAINFO"),
        ("map.pbtxt", "item {\n  id: 1\n  name: 'cat'\n}", "or code such as 'item"),
        ("a.xml", "<?xml version='1.0'?>", "settings or code"),
        ("names.txt", "cat\tblack\nred dog", "cannot be printed"),
        ("names.txt", "background", "names no class"),
        ("names.txt", "1 cat\n2 dog\n3 cat", "names the class 'cat' twice"),
    ],
)  # fmt: skip
def test_lists_that_are_refused(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_class_names(tmp_path / name)


def test_a_first_class_that_may_be_background_is_said(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "n.txt").write_text("unlabeled\ncat")
    assert read_class_names(tmp_path / "n.txt", told.append) == ("unlabeled", "cat")
    assert told == ["'unlabeled' is class 1 of n.txt; if it is id 0 in the masks, call it background"]


def test_names_of_background() -> None:
    meant = ["background", "Background", " BACKGROUND ", "_background_", "__background__"]
    others = ["bg", "background noise", "back", "backgrounds", "", "none", "ground"]
    assert [is_background(name) for name in meant + others] == [True] * len(meant) + [False] * len(others)


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(
        st.text("abcé xyz", min_size=1, max_size=8).map(str.strip), min_size=1, max_size=6, unique=True
    )
)
def test_the_same_names_in_any_form(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    names = [f"n{name}" for name in names]
    path = tmp_path_factory.mktemp("lists") / "names.txt"
    for text in (
        "\n".join(names),
        "\n".join(f"{number} {name}" for number, name in enumerate(["background", *names])),
        "\n".join(f"{name}:0,0,0::" for name in ["background", *names]),
        "\n".join(["__ignore__", "_background_", *names]),
        json.dumps({name: number for number, name in enumerate(names, start=1)}),
    ):
        path.write_text(text, "utf-8")
        assert read_class_names(path) == tuple(names)
