"""Processes by number and start time, so that a recorded one is never mistaken for a later one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state first; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid, _status(pid)[19])

    def lives(self) -> bool:
        """Whether it still runs; a zombie does not."""
        status = _status(self.pid)
        return bool(status) and status[0] not in "ZX" and status[19] == self.started

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        while self.lives():
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):  # another process's child, and reaped by that
            os.waitpid(self.pid, 0)


def children(pid: int) -> list[int]:
    """Numbers of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def commands_in_namespace_of(pid: int) -> dict[int, str]:
    """Number -> command line of the living processes that share a process's pid namespace."""
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") == namespace:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue  # it ended meanwhile
    return {number: command for number, command in found.items() if command}


def environment_of(pid: int) -> dict[str, str]:
    """The variables a process was started with; empty if it has ended."""
    try:
        words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)
