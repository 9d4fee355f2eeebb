"""Tables, class lists and masks of one's own through ingest: refused in one line, or the bad rows listed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosa_dist.data.shards.split import open_split
from tests.bad_input.outcome import call, leftovers
from tests.bad_input.picture_cases import encoded, pixels

ROWS = [("a.jpg", "cat"), ("b.jpg", "dog;cat"), ("sub/c.jpg", "dog"), ("d.jpg", "cat")]
Change = Callable[[str], str | bytes]


def table(rows=ROWS, header: str = "image,tags") -> str:
    return header + "\n" + "".join(f"{image},{tags}\n" for image, tags in rows)


def with_rows(*extra: str) -> str:
    return table() + "".join(f"{row}\n" for row in extra)


def listed(rows: list[object]) -> str:
    good = [{"image": image, "tags": tags.split(";")} for image, tags in ROWS]
    return json.dumps([*good, *rows])


def lines(*extra: str) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in json.loads(listed([]))) + "".join(
        f"{e}\n" for e in extra
    )


# name: (file's ending, content, records that must be kept, words of a rejection or of the refusal)
TAKEN: dict[str, tuple[str, str | bytes, int, str]] = {
    "plain": (".csv", table(), 4, ""),
    "bom": (".csv", b"\xef\xbb\xbf" + table().encode(), 4, ""),
    "crlf": (".csv", table().replace("\n", "\r\n"), 4, ""),
    "bom_crlf": (".csv", b"\xef\xbb\xbf" + table().replace("\n", "\r\n").encode(), 4, ""),
    "old_mac_lines": (".csv", table().replace("\n", "\r"), 4, ""),
    "tabs": (".tsv", table().replace(",", "\t"), 4, ""),
    "semicolons": (".csv", table([(i, t.replace(";", "|")) for i, t in ROWS]).replace(",", ";"), 4, ""),
    "blank_lines": (".csv", table().replace("\n", "\n\n"), 4, ""),
    "no_last_newline": (".csv", table().rstrip(), 4, ""),
    "spaces": (".csv", table([(f" {i} ", f" {t} ") for i, t in ROWS]), 4, ""),
    "quoted": (".csv", table([(f'"{i}"', f'"{t}"') for i, t in ROWS]), 4, ""),
    "more_columns": (".csv", "note,image,tags\n" + "".join(f"x,{i},{t}\n" for i, t in ROWS), 4, ""),
    "short_row": (".csv", with_rows("a2.jpg"), 4, "no image file"),
    "index_without_name": (".csv", ",image,tags\n" + "".join(f"7,{i},{t}\n" for i, t in ROWS), 4, ""),
    "json": (".json", listed([]), 4, ""),
    "json_lines": (".jsonl", lines(), 4, ""),
    "json_lines_blank": (".jsonl", lines("", "  "), 4, ""),
    "picture_missing": (".csv", with_rows("gone.jpg,cat"), 4, "no image file"),
    "id_twice": (".csv", with_rows("a.jpg,dog"), 4, ""),
    "id_twice_by_ending": (".csv", with_rows("a.png,dog"), 4, ""),
    "empty_tags": (".csv", with_rows("e.jpg,"), 5, ""),
    "separators_only": (".csv", with_rows("e.jpg,;;;"), 5, ""),
    "unprintable_name": (".csv", with_rows("e\x07.jpg,cat"), 4, "cannot be printed"),
    "climbing": (".csv", with_rows("../../secret.jpg,cat"), 4, "leaves its folder"),
    "absolute": (".csv", with_rows("/etc/passwd,cat"), 4, "leaves its folder"),
    "backslashes": (".csv", with_rows("..\\..\\secret.jpg,cat"), 4, "leaves its folder"),
    "address": (".csv", with_rows("http://example.org/x.jpg,cat"), 4, "leaves its folder"),
    "no_name": (".csv", with_rows(",cat"), 4, "empty"),
    "long_name": (".csv", with_rows("x" * 300 + ".jpg,cat"), 4, "longer than"),
    "a_folder": (".csv", with_rows("sub,cat"), 4, ""),
    "tag_is_object": (
        ".json",
        listed([{"image": "e.jpg", "tags": {"cat": 1}}]),
        4,
        "neither text nor a list",
    ),
    "tag_is_nested": (".json", listed([{"image": "e.jpg", "tags": [["cat"]]}]), 4, "neither text nor a list"),
    "tag_is_null": (".json", listed([{"image": "e.jpg", "tags": None}]), 5, ""),
    "tags_left_out": (".json", listed([{"image": "e.jpg"}]), 5, ""),
    "tag_is_nan": (".json", listed([{"image": "e.jpg", "tags": float("nan")}]), 5, ""),
    "name_is_number": (".json", listed([{"image": 7, "tags": ["cat"]}]), 4, "no image file"),
}
REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "nothing": (".csv", "", "no rows"),
    "header_only": (".csv", "image,tags\n", "no rows"),
    "long_row": (".csv", with_rows("a2.jpg,cat,x,y,z"), "has more cells than the header has names"),
    "no_tags_at_all": (".csv", table([(i, "") for i, _ in ROWS]), "no tag in"),
    "no_tag_column": (".csv", table(header="image,weather"), "--tags-column"),
    "no_image_column": (".csv", table(header="who,tags"), "--image-column"),
    "latin_1": (".csv", table([("a.jpg", "Kätzchen")]).encode("latin-1"), "not UTF-8"),
    "utf_16": (".csv", table().encode("utf-16"), "not UTF-8"),
    "a_picture": (".csv", encoded("jpg"), ""),
    "nul_bytes": (".csv", table().replace("cat", "c\0t"), ""),
    "open_quote": (".csv", with_rows('"e.jpg,cat') + "x,y\n" * 20_000, "close its quotation mark"),
    "open_quote_in_tags": (".csv", with_rows('e.jpg,"cat', "x.jpg,dog"), "close its quotation mark"),
    "field_of_a_megabyte": (".csv", with_rows("e.jpg," + "x" * 1_000_000), ""),
    "json_cut": (".json", listed([])[:-9], "not JSON"),
    "json_of_an_object": (".json", '{"image": "a.jpg"}', "not a list"),
    "json_of_words": (".json", '["a.jpg"]', "not an object"),
    "json_deep": (".json", "[" * 100_000, ""),
    "json_lines_in_json": (".json", lines(), "JSON lines end in .jsonl"),
    "json_line_cut": (".jsonl", lines('{"image": "e.j'), "line 5 is not JSON"),
    "json_line_deep": (".jsonl", lines("[" * 100_000), ""),
    "parquet_rubbish": (".parquet", b"PAR1" + bytes(99), "Parquet"),
    "parquet_empty": (".parquet", b"", "Parquet"),
    "spreadsheet": (".xlsx", b"PK\x03\x04", "unknown kind"),
    "too_many_classes": (".csv", table([("a.jpg", ";".join(f"c{n}" for n in range(300)))]), "300 foreground"),
    "vectors": (".jsonl", '{"image": "a.jpg", "tags": [0, 1, 1]}\n', "name the class of each"),
    "flags_and_more": (".csv", "image,h,cat,dog\na.jpg,9,1,0\n", "(of 0 and 1: cat,dog)"),
    "one_flag": (".csv", "image,crack\na.jpg,1\nb.jpg,0\n", "name the one class"),
    "joined_tags": (".csv", table([("a.jpg", "cat dog"), *ROWS]), "--tags-separator ' '"),
    "decimal_commas": (".csv", "image;tags\na.jpg;1,0\nb.jpg;2,0\n", "without a decimal comma"),
    "column_twice": (".csv", "image,tags,tags\na.jpg,cat,dog\n", "two columns 'tags'"),
    "compressed": (".csv.gz", b"\x1f\x8b", "unpack what is compressed"),
    "all_missing": (".csv", table([(f"gone{n}.jpg", "cat") for n in range(9)]), ""),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "images"
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg", "d.jpg", "e.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded("jpg", pixels(seed=number)))
    return folder


def written(folder: Path, ending: str, content: str | bytes) -> Path:
    path = folder / f"tags{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


OPTIONS = ("--val-fraction", 0, "--max-bad-fraction", 0.5)


@pytest.mark.parametrize("name", TAKEN)
def test_a_table_is_taken_but_for_its_bad_rows(name, images, tmp_path, capsys):
    ending, content, kept, reason = TAKEN[name]
    path, out = written(tmp_path, ending, content), tmp_path / "out"
    done = call(capsys, "ingest", "table", images, path, "--out", out, *OPTIONS, count="ingest")
    assert (done.code, done.err) == (0, "")
    assert open_split(out, "train").size == kept
    rejected = (out / "rejected.json").read_text() if (out / "rejected.json").is_file() else ""
    assert reason in rejected
    if kept == 4 and ending == ".csv" and reason:
        assert "rejected" in done.out
    assert leftovers(out) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_used_is_one_line(name, images, tmp_path, capsys):
    ending, content, part = REFUSED[name]
    path, out = written(tmp_path, ending, content), tmp_path / "out"
    done = call(capsys, "ingest", "table", images, path, "--out", out, *OPTIONS, count="ingest")
    assert done.code == 2
    assert part in done.the_line()
    assert sorted(p.name for p in tmp_path.iterdir() if "partial" not in p.name) == [path.name]


# name: (ending, content, further options, pictures of each class, words that are printed)
READ: dict[str, tuple[str, str, tuple[str, ...], dict[str, int], str]] = {
    "list_as_text": (
        ".csv",
        table([("a.jpg", "\"['cat', 'dog']\""), ("b.jpg", "['cat']"), ("d.jpg", "[]")]),
        (),
        {"cat": 2, "dog": 1},
        "read as lists",
    ),
    "spreadsheet_numbers": (
        ".csv",
        table([("a.jpg", "1.0"), ("b.jpg", "2.0"), ("d.jpg", "nan"), ("e.jpg", "")]),
        (),
        {"1": 1, "2": 1},
        "taken as no tag: 'nan'",
    ),
    "nan_in_json_lines": (
        ".jsonl",
        '{"image": "a.jpg", "tags": NaN}\n{"image": "b.jpg", "tags": 2.0}\n',
        (),
        {"2": 1},
        "1 without tags",
    ),
    "flags": (
        ".csv",
        "filename, Cat, Dog, Bird\na.jpg, 1, 0, 0\nb.jpg, 1, 1, 0\nd.jpg, 0, 0, 0\n",
        (),
        {"Bird": 0, "Cat": 2, "Dog": 1},
        "each is a class",
    ),
    "flags_asked": (
        ".csv",
        "filename,Cat,Dog,seen\na.jpg,1,0,3\nb.jpg,1,1,4\n",
        ("--tags-column", "Cat,Dog"),
        {"Cat": 2, "Dog": 1},
        "each is a class",
    ),
    "separator": (
        ".csv",
        table([("a.jpg", "rust scab"), ("b.jpg", "rust"), ("d.jpg", "scab")]),
        ("--tags-separator", " "),
        {"rust": 2, "scab": 2},
        "",
    ),
    "spellings": (
        ".csv",
        table([("a.jpg", "DOG"), ("b.jpg", "Dog"), ("d.jpg", "dog")]),
        (),
        {"dog": 3},
        "as 'dog'",
    ),
    "background": (".csv", table([("a.jpg", "background"), ("b.jpg", "cat")]), (), {"cat": 1}, "no tag"),
    "row_per_tag": (
        ".csv",
        table([("a.jpg", "cat"), ("a.jpg", "dog"), ("b.jpg", "cat")]),
        (),
        {"cat": 2, "dog": 1},
        "tags are united",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_tags_are_read_as_they_are_meant(name, images, tmp_path, capsys):
    ending, content, more, counts, words = READ[name]
    path, out = written(tmp_path, ending, content), tmp_path / "out"
    done = call(capsys, "ingest", "table", images, path, "--out", out, *OPTIONS, *more, count="ingest")
    assert (done.code, done.err) == (0, "")
    assert open_split(out, "train").class_counts == counts
    assert words in done.out


CLASS_LISTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "names no class"),
    "background_only": ("background\n", "names no class"),
    "twice": ("cat\ndog\ncat\n", "twice"),
    "latin_1": ("Kätzchen\n".encode("latin-1"), "not UTF-8"),
    "too_many": ("".join(f"class {n}\n" for n in range(255)), "255 foreground classes"),
    "one_missing": ("cat\nbird\n", ""),
}


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_class_list_that_does_not_fit(name, images, tmp_path, capsys):
    content, part = CLASS_LISTS[name]
    names, out = tmp_path / "names.txt", tmp_path / "out"
    names.write_bytes(content if isinstance(content, bytes) else content.encode())
    path = written(tmp_path, ".csv", table())
    words = ("table", images, path, "--out", out, "--classes", names, *OPTIONS)
    done = call(capsys, "ingest", *words, count="ingest")
    if part:
        assert done.code == 2
        assert part in done.the_line()
        return
    assert done.code == 0
    assert "tag 'dog' is no class of this data set" in (out / "rejected.json").read_text()


def mask_bytes(values, mode: str = "L", kind: str = "png", **options) -> bytes:
    picture = (
        Image.fromarray(np.asarray(values)).convert(mode) if mode else Image.fromarray(np.asarray(values))
    )
    return encoded(kind, picture, **options)


GRID = np.zeros((36, 48), np.uint8)
MASKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "good": (lambda: mask_bytes(GRID + 1), ""),
    "ignored": (lambda: mask_bytes(GRID + 255), ""),
    "palette": (lambda: mask_bytes(GRID, "P"), ""),
    "one_bit": (lambda: mask_bytes(GRID, "1"), ""),
    "deep_values": (lambda: mask_bytes(GRID.astype(np.uint16) + 2, ""), ""),
    "other_size": (lambda: mask_bytes(GRID[:30]), "make them equal"),
    "turned": (lambda: mask_bytes(GRID.T), "make them equal"),
    "one_pixel": (lambda: mask_bytes(GRID[:1, :1]), "make them equal"),
    "colours": (lambda: mask_bytes(GRID, "RGB"), "has colours"),
    "alpha": (lambda: mask_bytes(GRID, "RGBA"), "has colours"),
    "grey_alpha": (lambda: mask_bytes(GRID, "LA"), "has colours"),
    "jpeg": (lambda: mask_bytes(GRID, kind="jpg"), "is a JPEG"),
    "unknown_class": (lambda: mask_bytes(GRID + 3), "outside 0..2"),
    "value_254": (lambda: mask_bytes(GRID + 254), "outside 0..2"),
    "deep_out_of_range": (lambda: mask_bytes(GRID.astype(np.uint16) + 1000, ""), "does not fit into 8 bits"),
    "negative": (lambda: mask_bytes(GRID.astype(np.int32) - 5, "", "tif"), "does not fit"),
    "cut": (lambda: mask_bytes(np.random.default_rng(0).integers(0, 3, (36, 48), np.uint8))[:200], ""),
    "text": (lambda: b"no mask", "not a known picture format"),
    "nothing": (lambda: b"", ""),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_taken_or_listed(name, images, tmp_path, capsys):
    make, part = MASKS[name]
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    (masks / "a.png").write_bytes(make())
    (masks / "b.png").write_bytes(mask_bytes(GRID + 2))
    path = written(tmp_path, ".csv", table())
    words = ("table", images, path, "--out", out, "--masks", masks, *OPTIONS)
    done = call(capsys, "ingest", *words, count="ingest")
    assert (done.code, done.err) == (0, "")
    refused = bool(part) or name in ("cut", "nothing")
    assert open_split(out, "train").size == 4 - refused
    if refused:
        (row,) = [row for row in json.loads((out / "rejected.json").read_text())["train"] if row["id"] == "a"]
        assert part in row["reason"]
        assert "\n" not in row["reason"]


@pytest.mark.slow
def test_a_table_of_a_hundred_thousand_missing_pictures_ends_in_one_line(images, tmp_path, capsys):
    path = tmp_path / "huge.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "tags"])
        writer.writerows([f"gone/{number}.jpg", "cat"] for number in range(100_000))
    done = call(capsys, "ingest", "table", images, path, "--out", tmp_path / "out", *OPTIONS, count="ingest")
    assert done.code == 2
    assert "bad" in done.the_line()
