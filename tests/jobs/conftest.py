"""A job called as a user calls it, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.programs import run_here


@dataclass(frozen=True)
class Done:
    """Exit code of a job, and what it has printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run_job(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script of the project with words, from the present folder."""

    def run(script: str, *words: object) -> Done:
        capsys.readouterr()
        code = run_here(script, *map(str, words))
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run
