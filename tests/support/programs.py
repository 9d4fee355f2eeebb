"""The project's programs as a user starts them: in this process, or as a process that a test may kill."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import psutil

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
"""seconds after which something that should happen is given up; generous, as the machine may be busy"""


class NotInTimeError(RuntimeError):
    """Something did not happen in time, or a process ended by itself."""


def wait_until(done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until it is done; `NotInTimeError` after `patience` seconds."""
    end = time.monotonic() + patience
    while not done():
        if time.monotonic() > end:
            raise NotInTimeError(f"{what} did not happen within {patience:g} s")
        time.sleep(0.05)


def command(script: str, *words: str) -> list[str]:
    """The command line of a script of the project."""
    return [sys.executable, str(PROJECT / script), *words]


def run_here(*words: str) -> int:
    """Run a Python command line (a script or `-m`) in this process and return its exit code."""
    argv = list(words[1:] if words[0] == "-m" else words)
    with patch.object(sys, "argv", argv):
        try:
            if words[0] == "-m":
                runpy.run_module(argv[0], run_name="__main__")
            else:
                runpy.run_path(str(PROJECT / argv[0]), run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


class Done(NamedTuple):
    """Exit code of a job, and what it has printed."""

    code: int
    out: str
    err: str


@contextmanager
def running(arguments: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own; nothing of it remains after the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | variables,
        )
    try:
        yield process
    finally:
        kill_family(process)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and then its descendants, as when a machine is lost."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
