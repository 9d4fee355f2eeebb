"""Counts of the bad-input cases, printed at the end."""

from __future__ import annotations

from tests.bad_input.outcome import COUNTS
from tests.inference.conftest import trained_run  # noqa: F401


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        parts = ", ".join(f"{count} through {job}" for job, count in sorted(COUNTS.items()))
        terminalreporter.write_line(f"bad input: {sum(COUNTS.values())} cases tried ({parts})")
