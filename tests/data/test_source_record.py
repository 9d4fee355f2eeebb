"""Names that stay in their folder, contents that are read late, and ids that count once."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.data.errors import RecordError, Rejection
from cosa_dist.data.sources.record import (
    File,
    SourceRecord,
    duplicates_rejected,
    entry_identity,
    id_of,
    unsafe_id,
    unsafe_name,
)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".", "a\\b", "", "x" * 201, "ä" * 101, "a\x00b"]
)
def test_ids_that_are_no_plain_names_are_unsafe(name: str) -> None:
    assert unsafe_id(name)


@pytest.mark.parametrize("name", ["", "../x.jpg", "a/../../x", "/x.jpg", "a\\b", "http://h/x.jpg", "a\nb"])
def test_paths_that_may_leave_their_folder_are_unsafe(name: str) -> None:
    assert unsafe_name(name)


@given(name=st.text())
def test_a_safe_path_lies_below_its_folder(name: str) -> None:
    if unsafe_name(name) is None:
        inside = os.path.normpath(f"/data/images/{name}")
        assert inside == "/data/images" or inside.startswith("/data/images/")
    if unsafe_id(name) is None:
        assert (Path("/data/images") / f"{name}.jpg").parent == Path("/data/images")


def test_ids_of_paths() -> None:
    assert [id_of(name) for name in ("a.jpg", "cat/a.b.png", "./cat/ä", ".x")] == [
        "a",
        "cat__a.b",
        "cat__ä",
        ".x",
    ]
    assert id_of(unicodedata.normalize("NFD", "é.jpg")) == "é"


def test_a_link_is_followed_only_inside_its_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "a" / "real.jpg").write_bytes(b"inside")
    (outside / "secret.jpg").write_bytes(b"secret")
    (root / "near.jpg").symlink_to("a/real.jpg")
    (root / "far.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    assert File(root, "near.jpg").read() == b"inside"
    for name in ("far.jpg", "folder/secret.jpg"):
        with pytest.raises(RecordError, match="link that leaves its folder"):
            File(root, name).read()
    (tmp_path / "other name").symlink_to(root)
    assert File(tmp_path / "other name", "a/real.jpg").read() == b"inside"


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(RecordError, match="not a plain file"):
            File(tmp_path, name).read()
    with pytest.raises(FileNotFoundError):
        File(tmp_path, "absent.jpg").read()


@pytest.mark.parametrize(("on_disk", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_are_found_in_either_spelling(tmp_path: Path, on_disk: str, asked: str) -> None:
    (tmp_path / unicodedata.normalize(on_disk, "é.jpg")).write_bytes(b"1")
    file = File(tmp_path, unicodedata.normalize(asked, "é.jpg"))
    assert file.read() == b"1"
    assert file.exists()


def test_the_identity_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    record = SourceRecord("a", File(tmp_path, "a.jpg"), b"mask", tags=(1,))
    absent = entry_identity(record)
    path.write_bytes(b"1")
    first = entry_identity(record)
    assert first == entry_identity(SourceRecord("a", File(tmp_path, "a.jpg"), b"mask", tags=(1,)))
    path.write_bytes(b"12")
    variants = {
        absent,
        first,
        entry_identity(record),
        entry_identity(SourceRecord("b", File(tmp_path, "a.jpg"), b"mask", tags=(1,))),
        entry_identity(SourceRecord("a", File(tmp_path, "a.jpg"), b"mask", tags=None)),
        entry_identity(SourceRecord("a", File(tmp_path, "a.jpg"), None, tags=(1,))),
        entry_identity(Rejection("a", "why")),
    }
    assert len(variants) == 7


def test_an_id_counts_once() -> None:
    again = SourceRecord("a", b"1", tags=())
    first, second, third, fourth = duplicates_rejected(
        [SourceRecord("a", b"1"), again, SourceRecord("a", b"2"), SourceRecord("b", b"3")]
    )
    assert first == SourceRecord("a", b"1")
    assert second == Rejection("a", "id occurs twice in the list; the first one is kept")
    assert isinstance(third, Rejection)
    assert third.reason.startswith("id belongs to another picture too")
    assert fourth == SourceRecord("b", b"3")
