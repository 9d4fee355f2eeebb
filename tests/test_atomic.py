"""A file or a folder is there complete or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosa_dist.atomic import atomic_file, atomic_folder, atomic_write


def test_it_replaces_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "note.json"
    atomic_write(path, "one")
    atomic_write(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    atomic_write(path, "one")
    whole = Path.write_text

    def half(self: Path, text: str, **named: str) -> int:
        whole(self, text[:1], **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "two")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_of_a_disk_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"1")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_appears_when_all_of_it_is_written(tmp_path, sync):
    path = tmp_path / "runs" / "one"
    with atomic_folder(path, sync=sync) as folder:
        assert folder.name.startswith(".one.")
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "inner" / "a.txt").read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "one"
    path.mkdir()
    (path / "mine.txt").write_text("x")

    def fail() -> None:
        with atomic_folder(path, replace=True) as folder:
            (folder / "a.txt").write_text("a")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert list(tmp_path.rglob("*")) == [path, path / "mine.txt"]


def test_a_folder_is_replaced_only_where_told(tmp_path):
    path = tmp_path / "one"
    path.mkdir()
    (path / "mine.txt").write_text("x")
    with pytest.raises(OSError), atomic_folder(path) as folder:
        (folder / "a.txt").write_text("a")
    assert list(tmp_path.rglob("*")) == [path, path / "mine.txt"]
    with atomic_folder(path, replace=True) as folder:
        (folder / "a.txt").write_text("a")
    assert list(tmp_path.rglob("*")) == [path, path / "a.txt"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    other, path = tmp_path / "other", tmp_path / "one"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    path.symlink_to(other)
    with atomic_folder(path, replace=True) as folder:
        (folder / "a.txt").write_text("a")
    assert not path.is_symlink()
    assert sorted(tmp_path.rglob("*.txt")) == [path / "a.txt", other / "mine.txt"]
