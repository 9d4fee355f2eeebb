"""A file is there whole or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosa_dist.whole_file import write_whole


def test_it_replaces_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "note.json"
    write_whole(path, "one")
    write_whole(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    write_whole(path, "one")
    whole = Path.write_text

    def half(self: Path, text: str, **named: str) -> int:
        whole(self, text[:1], **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "two")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "one"
    assert list(tmp_path.iterdir()) == [path]
