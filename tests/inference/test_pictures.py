"""Which pictures words name, and under which names their outputs go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosa_dist.data.errors import DataError
from cosa_dist.inference.pictures import list_pictures, printable
from tests.integration.small_run import make_shards


def names(words: list[str], out: Path) -> list[str]:
    return [picture.name for picture in list_pictures(words, out).pictures]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_folder_gives_its_tree_and_counts_what_is_no_picture(photos, tmp_path):
    listing = list_pictures([str(photos)], tmp_path / "out")
    assert [picture.name for picture in listing.pictures] == [
        "four",
        "one",
        "street/two",
        "street/far/drei mit Wörtern",
        "street/far/three",
    ]
    assert listing.others == 1
    assert listing.skipped == []


def test_a_pattern_keeps_the_tree_below_its_fixed_part(photos, tmp_path):
    found = names([f"{photos}/street/**/*.jpg", f"{photos}/*.webp"], tmp_path / "out")
    assert found == ["far/three", "four"]


def test_a_picture_named_twice_is_done_once(photos, tmp_path):
    assert names([str(photos / "one.jpg"), f"{photos}/*.jpg"], tmp_path / "out") == ["one"]


def test_the_output_folder_is_no_input(photos, tmp_path):
    touch(photos / "out" / "masks", "one.png")
    assert len(names([str(photos)], photos / "out")) == 5
    assert len(names([str(photos)], tmp_path / "elsewhere")) == 6


def test_equal_names_are_told_apart_by_ending_then_by_number(tmp_path):
    touch(tmp_path, "a/x.jpg", "a/x.png", "a/y.jpg", "b/y.jpg", "b/Y.jpg")
    words = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert names(words, tmp_path / "out") == ["x.jpg", "x.png", "y.jpg", "Y.jpg-2", "y.jpg-3"]


def test_links_to_folders_are_not_entered_and_loops_do_no_harm(photos, tmp_path):
    (photos / "loop").symlink_to(photos)
    (photos / "round.jpg").symlink_to(photos / "round.jpg")
    found = names([str(photos)], tmp_path / "out")
    assert len(found) == 6
    assert "round" in found


def test_a_name_that_cannot_be_printed_is_skipped(photos, tmp_path):
    with open(os.fsencode(photos) + b"/\xff\xfe.jpg", "wb"):
        pass
    listing = list_pictures([str(photos)], tmp_path / "out")
    assert len(listing.pictures) == 5
    assert "cannot be printed" in listing.skipped[0].reason
    str(listing.skipped[0]).encode("utf-8")


@pytest.mark.parametrize(("text", "shown"), [("a\nb", "a\\nb"), ("\x1b[1m", "\\x1b[1m"), ("ä ö", "ä ö")])
def test_what_a_terminal_cannot_print_is_escaped(text, shown):
    assert printable(text) == shown


def test_records_of_shards_go_by_their_ids(tmp_path):
    shards = make_shards(tmp_path / "shards")
    found = list_pictures([str(shards)], tmp_path / "out").pictures
    assert len(found) == 11
    assert {picture.index for picture in found} == set(range(11))
    assert len(list_pictures([str(shards)], tmp_path / "out", "train").pictures) == 24
    with pytest.raises(DataError, match="did you mean 'train'"):
        list_pictures([str(shards)], tmp_path / "out", "trian")


@pytest.mark.parametrize(
    ("word", "part"),
    [("nothing", "no file or folder"), ("*.gif", "no file matches"), ("empty", "no picture in")],
)
def test_a_word_that_names_nothing_is_an_error(word, part, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=part):
        list_pictures([str(tmp_path / word)], tmp_path / "out")
