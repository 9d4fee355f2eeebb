"""What every job owes its user: one line for a mistake, no traceback, an exit code, nothing half-written."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

JOBS = Path(__file__).resolve().parents[2] / "jobs"
COUNTS: Counter[str] = Counter()
"""cases tried, by the job that they went through"""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    out: str
    err: str

    def the_line(self) -> str:
        """The single line of a refusal; asserts that it is one, and short enough to be read."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert len(lines[0]) < 600, lines[0]
        return lines[0]


def call(capsys, job: str, *words: object, count: str = "") -> Outcome:
    """Run a job's `main` in this process with a command line."""
    COUNTS[count or job] += 1
    capsys.readouterr()
    with patch.object(sys, "argv", [f"{job}.py", *map(str, words)]):
        try:
            code = runpy.run_path(str(JOBS / f"{job}.py"))["main"]()
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
    shown = capsys.readouterr()
    assert code in (0, 1, 2, 3)
    return Outcome(code, shown.out, shown.err)


def leftovers(folder: Path) -> list[str]:
    """Hidden or partial files that a job left behind."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or ".part" in path.name]
