"""Shell scripts parse, Makefile targets exist and speak clearly, constraints are exact."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    ".ci/run",
    *sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("slurm/*.sh")),
]


def bash_errors(path: Path) -> str:
    """What bash says about a script's syntax; empty where it is right."""
    return subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr


def late_directives(source: str) -> list[str]:
    """`#SBATCH` lines after the first command: SLURM ignores them without a word."""
    lines = [line.strip() for line in source.splitlines()]
    first = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    return [line for line in lines[first:] if line.startswith("#SBATCH")]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` in the project, without running a recipe."""
    command = ["make", "-C", str(PROJECT), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_parses_and_stops_at_the_first_error(name: str) -> None:
    source = (PROJECT / name).read_text()
    assert bash_errors(PROJECT / name) == ""
    assert source.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in source
    assert (PROJECT / name).stat().st_mode & 0o111, f"{name} is not executable"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.startswith("slurm/")])
def test_slurm_script_reads_all_its_directives_and_leaves_other_jobs_alone(name: str) -> None:
    source = (PROJECT / name).read_text()
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("#"))
    assert late_directives(source) == []
    assert not re.search(r"\bray\W+stop\b", code), (
        "it ends every Ray of this user on the host, other jobs' as well"
    )


def test_a_broken_script_and_a_late_directive_are_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sh"
    broken.write_text("if true; then\n")
    assert "syntax error" in bash_errors(broken)
    assert late_directives("#!/bin/bash\n#SBATCH -N 2\n\n# words\necho\n#SBATCH -t 5\n") == ["#SBATCH -t 5"]


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-slow", "test-all", "lint", "install", "clean", "help"]
)
def test_makefile_has_the_target(target: str) -> None:
    run = make(target)
    assert run.returncode == 0, run.stderr


def test_an_unknown_target_is_an_error() -> None:
    assert make("no-such-target").returncode != 0


def test_an_old_python_gets_one_clear_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "-C", str(PROJECT), f"PYTHON={old}", f"VENV={tmp_path}/venv", "install"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "needs Python 3.11 or newer" in run.stderr
    assert "Python 3.9.2" in run.stderr
    assert not (tmp_path / "venv").exists()


def test_constraints_are_exact_sorted_and_without_the_project() -> None:
    text = (PROJECT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    assert lines == sorted(lines, key=str.upper)
    names = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert len(names) == len(lines)
    assert {"torch", "torchvision", "ray", "mlflow", "pytest", "ruff", "mypy"} <= names
    assert "cosa-dist" not in names
