"""Every job's paths follow one rule: from COSA_ROOT if it is set, else from the current folder."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosa_dist.config.paths import lasting_place, place, place_or_url

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(PROJECT / "jobs").glob("*.py"), *(PROJECT / "sweeps").glob("*.py")])
TYPES = {"place", "lasting_place", "place_or_url"}
ABOUT_PATHS = re.compile(r"\b(files?|folders?|pages?|shards|store|pictures)\b", re.IGNORECASE)
NO_PATHS = {
    *(
        "--splits of ingest.py",
        "--name of ingest.py",
        "--image-column of ingest.py",
        "--labels-column of ingest.py",
    ),
    *("--format of export.py", "--outputs of predict.py", "--split of predict.py"),
    *("--space of run.py", "--machine of benchmark.py"),  # a name or a path: read through `place`
    *("--tracking-uri of leaderboard.py", "--pictures of leaderboard.py"),
}
"""options whose help speaks of files and that are none, or that the job itself takes through the rule"""


def options(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, type and help (with metavar) of every option that a script adds to a parser."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument" and node.args:
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if words.get("type") in ("int", "float") or "action" in words or "choices" in words:
                continue
            name = " ".join(ast.literal_eval(arg) for arg in node.args if isinstance(arg, ast.Constant))
            yield (
                f"{name} of {path.name}",
                words.get("type", "str"),
                words.get("help", "") + words.get("metavar", ""),
            )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_option_that_names_a_file_is_of_the_rules_type(path):
    found = [(name, kind) for name, kind, help_text in options(path) if ABOUT_PATHS.search(help_text)]
    assert [name for name, kind in found if kind not in TYPES and name not in NO_PATHS] == []


def test_relative_paths_start_from_the_root_and_others_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("COSA_ROOT", str(tmp_path))
    assert place("a/b") == lasting_place("a/b") == tmp_path / "a/b"
    assert place_or_url("photos/**/*.jpg") == f"{tmp_path}/photos/**/*.jpg"
    assert place_or_url("https://host/shards") == "https://host/shards"
    assert place("/elsewhere") == lasting_place("/elsewhere") == Path("/elsewhere")
    assert place("~/a") == Path.home() / "a"
    monkeypatch.delenv("COSA_ROOT")
    assert place("a/b") == Path("a/b")
    assert place_or_url("a") == "a"


def test_what_would_be_lost_with_a_jobs_copy_is_refused(monkeypatch, tmp_path):
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.delenv("COSA_ROOT", raising=False)
    with pytest.raises(argparse.ArgumentTypeError, match="'outputs/data.html' is relative.*COSA_ROOT"):
        lasting_place("outputs/data.html")
    monkeypatch.setenv("COSA_ROOT", str(tmp_path))
    assert lasting_place("outputs/data.html") == tmp_path / "outputs/data.html"
