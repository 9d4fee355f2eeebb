"""Id lists: what they name, whatever their line ends, and what they must not be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.sources.devkits import listed_records, parse_id_list, read_id_list
from cosa_dist.data.sources.record import File, SourceRecord

WORD = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="_-."), min_size=1)


@given(ids=st.lists(WORD), gaps=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", " \n", " 1\n", "\n\t"])))
def test_a_list_gives_its_ids_whatever_the_line_ends(ids: list[str], gaps: list[str]) -> None:
    text = "".join(name + (gaps[i % len(gaps)] if gaps else "\n") for i, name in enumerate(ids))
    assert parse_id_list(text) == ids


@given(text=st.text())
def test_any_text_is_parsed(text: str) -> None:
    for entry in parse_id_list(text):
        assert entry
        assert not any(letter.isspace() for letter in entry)


def test_lists_of_paths_are_understood() -> None:
    text = "\ufeff/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\nJPEGImages/b.jpg\n"
    assert parse_id_list(text) == ["2007_000032", "b"]


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n \n")
    with pytest.raises(DataError, match="names no record"):
        read_id_list(tmp_path / "train.txt")
    with pytest.raises(DataError, match=r"did you mean 'train'.*lists there: train"):
        read_id_list(tmp_path / "trian.txt")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_id_list(tmp_path / "train.txt")


def test_listed_names_become_records_or_rejections(tmp_path: Path) -> None:
    good, climbing = listed_records(["a", "../../secret"], tmp_path, None)
    assert good == SourceRecord("a", File(tmp_path, "a.jpg"))
    assert isinstance(climbing, Rejection)
    assert "leaves its folder" in climbing.reason
