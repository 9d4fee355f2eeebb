"""Cells of tags as people, spreadsheets and libraries write them: the right names, or one refusal."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.record import SourceOptions, Tags
from cosa_dist.data.sources.tags import column_tags, flag_columns, listed_text, settled, shown, truth

THREE = ("cat", "dog", "owl")


def read(
    cells: Sequence[Any], *classes: str, separator: str | None = None, column: str = "tags"
) -> tuple[list[Tags], list[str]]:
    """The tags of the cells of one column, and the lines that were told."""
    told: list[str] = []
    rules = SourceOptions(classes or None, separator, notify=told.append)
    return settled(column_tags(cells, column, rules), rules), told


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ("['cat', 'dog']", ("cat", "dog")),
        ("['cat']", ("cat",)),
        ("[]", ()),
        ('["cat","dog"]', ("cat", "dog")),
        ('["traffic light, red", "dog"]', ("traffic light, red", "dog")),
        ("('cat',)", ("cat",)),
        ("()", ()),
        ("{'cat', 'dog'}", ("cat", "dog")),
        ("{cat,dog}", ("cat", "dog")),
        ('{"hot dog",cat}', ("hot dog", "cat")),
        ("[cat, dog]", ("cat", "dog")),
        ("['cat' 'dog']", ("cat", "dog")),
        ("['cat'\n 'dog']", ("cat", "dog")),
        ("array(['cat', 'dog'], dtype=object)", ("cat", "dog")),
        ("np.array([1, 2])", ("1", "2")),
        ("set()", ()),
        ("[u'cat']", ("cat",)),
        (r"['it\'s', " + '"dog\'s"]', ("it's", "dog's")),
        ("['cat', None]", ("cat",)),
        ("[1, 2]", ("1", "2")),
        ("[1. 2.]", ("1", "2")),
        ("[ 3 10]", ("3", "10")),
        ('{cat,"hot dog"}', ("cat", "hot dog")),
        ("[St. John's wort, cat]", ("St. John's wort", "cat")),
        ("(aka 'puss')", ("(aka 'puss')",)),
        ("(tabby) cat", ("(tabby) cat",)),
        ("(unknown)", ("(unknown)",)),
        ("cat (tabby)", ("cat (tabby)",)),
    ],
)
def test_a_list_written_as_text_is_the_list(cell: str, tags: tuple[str, ...]) -> None:
    assert read([cell, "owl"])[0] == [tags, ("owl",)]


@pytest.mark.parametrize(
    "cell", ["['cat'", "{'cat': 1}", "[['cat'], ['dog']]", "['cat', {'a': 1}]", "[0 1 ... 1]"]
)
def test_a_list_that_cannot_be_read_is_one_bad_row(cell: str) -> None:
    (reason, fine) = read([cell, "owl"])[0]
    assert fine == ("owl",)
    assert isinstance(reason, str)
    assert cell[:4] in reason


@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=9), max_size=5
    )
)
@settings(deadline=None, max_examples=60)
def test_lists_come_back_from_their_text(names: list[str]) -> None:
    assert listed_text(repr(names)) == [word for name in names if (word := name.strip())]
    assert listed_text(json.dumps(names)) == names
    plain_names = [name for name in names if name.isalnum()]
    assert listed_text(str(np.array(plain_names, dtype=object))) == plain_names


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.0", "2.0", "nan", "", "NaN"], [("1",), ("2",), (), (), ()]),
        (["1.0;2.0", "2.", "NA", "None"], [("1", "2"), ("2",), (), ()]),
        ([1.0, float("nan"), 2.0, None], [("1",), (), ("2",), ()]),
        (["01", "1", "1.0"], [("01",), ("1",), ("1",)]),
        (["3", "-1", "5"], [("3",), (), ("5",)]),
        (["cat", "null", "<NA>", "#N/A", "unlabeled"], [("cat",), (), (), (), ()]),
        ([["cat", None], [float("nan")], [2.0]], [("cat",), (), ("2",)]),
        (["1.0", "cat"], [("1.0",), ("cat",)]),
        (["5 0 16", "5"], [("5", "0", "16"), ("5",)]),
        (["011", "100"], [("011",), ("100",)]),
    ],
)
def test_numbers_of_spreadsheets_and_missing_values(cells: list[Any], expected: list[Tags]) -> None:
    assert read(cells)[0] == expected


def test_missing_values_are_said_and_listed_classes_are_meant() -> None:
    _, told = read(["cat", "nan", "None"])
    assert told == ["column 'tags': taken as no tag: 'None', 'nan' (name in --classes what is a class)"]
    assert read(["cat", "nan", "None"], "cat", "nan", "None") == ([("cat",), ("nan",), ("None",)], [])
    assert read(["2.5", "1"], "2.5", "1") == ([("2.5",), ("1",)], [])
    assert read(["1.0", "-1"], "1.0", "-1") == ([("1.0",), ("-1",)], [])


VECTORS: dict[str, list[Any]] = {
    "numbers": [[0, 1, 1], [1, 0, 0]],
    "shares": [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
    "booleans": [[False, True, True], [True, False, False]],
    "signs": [[-1, 1, 1], [1, -1, 0]],
    "blanks": [[0, 1, 1], [1, None, float("nan")]],
    "text": ["0 1 1", "1 0 0"],
    "commas": ["0,1,1", "1,0,0"],
    "numpy": ["[0. 1. 1.]", "[1. 0. 0.]"],
    "list as text": ["[0, 1, 1]", "[1, 0, 0]"],
}


@pytest.mark.parametrize("kind", VECTORS)
def test_label_vectors_take_their_names_from_the_classes(kind: str) -> None:
    tags, told = read([*VECTORS[kind], None], *THREE)
    assert tags == [("dog", "owl"), ("cat",), ()]
    assert "holds label vectors" in told[-1]
    for classes in ((), ("cat", "dog")):
        with pytest.raises(DataError, match="label vectors of 3 places.*--classes FILE"):
            read(VECTORS[kind], *classes)


def test_lists_of_0_and_1_that_are_numbers_of_classes() -> None:
    assert read([[0, 1], [1], [0]])[0] == [("0", "1"), ("1",), ("0",)]
    assert read([[0, 1], [1, 0]], "0", "1")[0] == [("0", "1"), ("1", "0")]
    with pytest.raises(DataError, match="--classes FILE"):
        read([[0, 1], [1, 0]])
    assert read([[3, 1], [], [3]])[0] == [("3", "1"), (), ("3",)]


def test_lists_that_are_neither_vectors_nor_numbers_of_classes() -> None:
    for cells in ([[0, 2, 1], [3, 0, 0]], [[True, False], [True]], [[0, 0, 1], [1]]):
        with pytest.raises(DataError, match="neither label vectors of one length nor class numbers"):
            read(cells)
    assert all("0.2" in str(tags) for tags in read([[0.2, 0.8], [0.2, 0.1]], "cat", "dog")[0])
    with pytest.raises(DataError, match="decimal comma.*--tags-separator ','"):
        read(["1,0", "2,0", ""])


def test_a_column_of_0_and_1_says_of_one_class_whether_it_is_there() -> None:
    there = [("crack",), (), ()]
    for cells in (
        ["1", "0", ""],
        [1, 0, None],
        ["True", "False", "nan"],
        [True, False, False],
        ["yes", "no", ""],
    ):
        assert read(cells, "crack", column="label")[0] == there
        assert read(cells, "hole", "crack", column="Crack")[0] == there
    for cells, column in product((["1", "0"], [True, False], ["1.0", "nan"]), ("crack", "label")):
        with pytest.raises(DataError, match=r"only '\w.*': with --classes FILE name the one class"):
            read(cells, column=column)
    assert read(["x", "Y", "f"])[0] == [("x",), ("Y",), ("f",)]
    assert read(["1", "0", "1.0"], "0", "1", "1.0", column="crack")[0] == [("1",), ("0",), ("1.0",)]


def test_columns_of_flags_are_found() -> None:
    rows: list[dict[str, Any]] = [
        {"cat": "1", "dog": "0.0", "owl": " true", "bee": -1, "height": "30", "note": None, "list": [0]},
        {"cat": "", "dog": "1.0", "owl": False, "bee": 1, "height": "1", "note": ""},
    ]
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    assert flag_columns(columns) == {"cat": True, "dog": True, "owl": True, "bee": True, "note": False}
    read = [truth(cell) for cell in ("1", 0.0, "-1", "nan", None, True, "1,0", "0,00")]
    assert read == [True, False, False, None, None, True, True, False]


@pytest.mark.parametrize(
    ("joined", "separator"),
    [
        ("rust scab", " "),
        ("rust+scab", "+"),
        ("Rust/Scab", "/"),
        ("rust & scab", " & "),
        ("rust - scab", " - "),
        ("rust and scab", " and "),
        ("rust_scab", "_"),
        ("rust、scab", "、"),
        ("rust. scab", ". "),
        ("rust,scab;", ","),
    ],
)
def test_tags_made_of_other_tags_ask_for_their_separator(joined: str, separator: str) -> None:
    cells = ["rust", "scab", joined, "healthy"]
    with pytest.raises(DataError, match="made of other tags: say --tags-separator") as caught:
        read(cells)
    assert repr(separator) in str(caught.value)
    with pytest.raises(DataError, match="made of other tags"):
        read([[joined.strip(";")], "rust", "scab"], "rust", "scab")
    name = joined.strip(";")
    assert read([[name], "rust"], name, "rust", "scab")[0] == [(name,), ("rust",)]


def test_the_separator_named_by_the_user_decides() -> None:
    assert read(["rust scab", "rust", " scab  rust "], separator=" ")[0] == [
        ("rust", "scab"),
        ("rust",),
        ("scab", "rust"),
    ]
    assert read([["rust+scab"], "rust"], separator="+")[0] == [("rust", "scab"), ("rust",)]
    assert read(["hot dog", "hot", "dog; hot"], separator=";")[0] == [("hot dog",), ("hot",), ("dog", "hot")]
    assert read(["hot dog, hot", "hot"], "hot dog", "hot", separator=", ")[0] == [
        ("hot dog", "hot"),
        ("hot",),
    ]
    assert read(["1,0", "2,0"], separator=",")[0] == [("1", "0"), ("2", "0")]
    with pytest.raises(DataError, match="--tags-separator is empty"):
        read(["cat"], separator="")


def test_names_with_blanks_and_signs_are_names() -> None:
    names = ["hot dog", "dog", "bear", "teddy bear", "t-shirt"]
    assert read(names) == ([(name,) for name in names], [])
    for cell, name, sign in (("rust+scab", "rust+scab", "+"), ("dog,owl;", "dog,owl", ",")):
        words = f"tags such as '{name}' are taken as one name; --tags-separator '{sign}' parts them"
        assert read([cell]) == ([(name,)], [words])
        assert read([cell], name) == ([(name,)], [])
    assert read(["cat", "-", "?"])[0] == [("cat",), (), ()]


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (["DOG", "Dog", "dog"], "dog"),
        (["Dog", "dog", "Dog"], "Dog"),
        (
            ["traffic light", "traffic_light", "Traffic-Light", "traffic  light", "traffic light"],
            "traffic light",
        ),
        (["caf\u00e9", "CAFE\u0301"], "caf\u00e9"),
        (["cat", "\uff43\uff41\uff54", "cat\u200b", "cat"], "cat"),
    ],
)
def test_spellings_of_a_name_are_one_class_and_said(names: list[str], one: str) -> None:
    tags, told = read(names)
    assert tags == [(one,)] * len(names)
    assert len(told) == 1
    assert f"as '{one}'" in told[0]


def test_spellings_meet_the_listed_classes() -> None:
    tags, told = read(["DOG", "traffic-light", "cat"], "dog", "traffic light", "cat")
    assert tags == [("dog",), ("traffic light",), ("cat",)]
    assert "'DOG' as 'dog'; 'traffic-light' as 'traffic light'" in told[0]
    assert read(["Dog", "dog"], "Dog", "dog") == ([("Dog",), ("dog",)], [])
    assert read(["DOG"], "Dog", "dog") == ([("DOG",)], [])


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "unlabeled"])
def test_background_is_no_tag(name: str) -> None:
    tags, told = read([name, f"cat;{name}", ["dog", name]])
    assert tags == [(), ("cat",), ("dog",)]
    assert "no tag" in told[0]
    assert repr(name) in told[0]


def test_messages_show_no_bytes_and_stay_short() -> None:
    for value in (b"\x89PNG" * 99, {"bytes": b"\x89PNG"}, [b"\x89PNG"], "x" * 9999, ["x" * 9999], [[1]]):
        assert "PNG" not in shown(value)
        assert len(shown(value)) <= 60
        (tags,) = column_tags([value], "tags", SourceOptions())
        assert isinstance(tags, str)
        assert "PNG" not in tags
        assert len(tags) < 200
