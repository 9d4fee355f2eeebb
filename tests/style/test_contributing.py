"""CONTRIBUTING.md says what the quicker test targets leave out."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_every_file_with_nightly_tests_is_listed() -> None:
    own = Path(__file__)
    paths = [path for path in (PROJECT / "tests").rglob("test_*.py") if path != own]
    marked = {path.relative_to(PROJECT).as_posix() for path in paths if "mark.nightly" in path.read_text()}
    rows = re.findall(r"^\| `(tests/\S+)` \|", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(marked)
