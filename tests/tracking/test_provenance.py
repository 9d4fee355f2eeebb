from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from cosa_dist.tracking import provenance as module
from cosa_dist.tracking.provenance import git_commit, provenance, usable_cpus


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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 224 CPUs with these files of control groups."""

    def made(groups: str, **limits: str) -> Path:
        files = {"proc/self/cgroup": groups, **limits}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(224)))
        return tmp_path

    return made


V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("groups", "limits", "cpus"),
    [
        ("0::/", {}, 224),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 224),
        # A container, which sees its own group as the root.
        ("0::/", {"sys/fs/cgroup/cpu.max": "9600000 100000"}, 96),
        # A job's step: the job's limit holds for it.
        (
            "0::/slurm/job_7/step_0",
            {
                "sys/fs/cgroup/slurm/job_7/cpu.max": "1250000 100000",
                "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            },
            12,
        ),
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        # Version 1: minus one is no limit; groups of other controllers are none of ours.
        (
            "4:memory:/x\n3:cpu,cpuacct:/",
            {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"},
            224,
        ),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/abc",
            {f"{V1}/docker/abc/cpu.cfs_quota_us": "400000", f"{V1}/docker/abc/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("3:cpuset:/docker", {f"{V1}/docker/cpu.cfs_quota_us": "400000"}, 224),
        ("", {}, 224),
    ],
)
def test_cpus_are_those_that_the_control_group_allows(machine, groups, limits, cpus):
    assert usable_cpus(machine(groups, **limits)) == cpus


def test_cpus_are_no_more_than_the_processes_own(machine, monkeypatch):
    root = machine("0::/", **{"sys/fs/cgroup/cpu.max": "9600000 100000"})
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: {3, 5})
    assert usable_cpus(root) == 2
    assert usable_cpus() >= 1
