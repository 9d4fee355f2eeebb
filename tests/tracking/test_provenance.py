from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from cosa_dist.tracking.provenance import git_commit, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COSA_GIT_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    file = folder / "module.py"
    file.write_text("one = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", "module.py")
    git(folder, "commit", "-q", "-m", "first")
    return file


def test_commit_of_a_clean_and_of_a_changed_tree(source_file: Path):
    commit = git(source_file.parent, "rev-parse", "HEAD")
    (source_file.parent / "untracked.txt").write_text("does not count")
    assert git_commit(source_file) == commit
    source_file.write_text("one = 2\n")
    assert git_commit(source_file) == f"{commit}-dirty"


def test_a_file_that_only_lies_inside_a_foreign_repository(source_file: Path):
    installed = source_file.parent / "site-packages" / "installed.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert git_commit(installed) == "unknown"


def test_without_a_repository_the_variable_counts(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("COSA_GIT_COMMIT", "abc123-dirty")
    file = tmp_path / "module.py"
    file.write_text("")
    assert git_commit(file) == "abc123-dirty"
    monkeypatch.delenv("COSA_GIT_COMMIT")
    assert git_commit(file) == "unknown"


def test_tags_name_versions_and_hardware_but_not_the_host():
    tags = provenance()
    assert tags["version/torch"].startswith("2.")
    assert int(tags["cpu_count"]) >= 1
    assert {"git_commit", "gpus", "machine", "version/python"} <= set(tags)
    assert all(isinstance(value, str) for value in tags.values())
    assert platform.node() not in tags.values()
