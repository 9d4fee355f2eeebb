"""What a test does with a running cluster: SLURM's commands, jobs, and a look at what a job leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.machine import SYSTEM_PATH
from tests.slurm.processes import children, commands_in_namespace_of
from tests.slurm.record import Record, base_of

PROJECT = Path(__file__).resolve().parents[2]
COMMAND_DEADLINE = 60.0
# Jobs inherit the environment they are submitted from; torch and Ray have left their marks in a test's own.
KEPT = ("HOME", "USER", "LOGNAME", "LANG", "OMP_NUM_THREADS")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
TWO_NODES = ("--nodes=2", "--cpus-per-task=2")


class CommandError(RuntimeError):
    """One of SLURM's commands failed; the message is what it said."""


def shared_folders() -> list[str]:
    """Folders below /tmp that the nodes have to see: the project and the interpreter's."""
    folders = {str(PROJECT), sys.prefix, sys.base_prefix}
    return sorted(folder for folder in folders if folder.startswith("/tmp/"))


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: it does not in time; the message is `what()`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s: {what()}")
        time.sleep(0.2)


@dataclass(frozen=True)
class JobState:
    """A job as SLURM tells it."""

    state: str
    exit_code: int
    restarts: int = 0
    """how often SLURM has started it again"""

    @property
    def ended(self) -> bool:
        """Whether it has left the nodes."""
        return self.state in ENDED


@dataclass(frozen=True)
class Cluster:
    """A running test cluster."""

    name: str

    @property
    def work(self) -> Path:
        """A folder that every node sees, where jobs are submitted."""
        return base_of(self.name) / "work"

    def command(self, *words: str, **variables: str) -> str:
        """Run one of SLURM's commands in the shared folder and return what it prints.

        Raises:
            CommandError: it ended with another code than 0.
        """
        ours = {name: os.environ[name] for name in KEPT if name in os.environ}
        conf = str(base_of(self.name) / "slurm.conf")
        process = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_DEADLINE,
            cwd=self.work,
            env={**ours, "PATH": SYSTEM_PATH, "SLURM_CONF": conf, **variables},
        )
        if process.returncode:
            said = (process.stderr + process.stdout).strip()
            raise CommandError(f"{' '.join(words)} ended with {process.returncode}: {said}")
        return process.stdout.strip()

    def submit(
        self, *words: str, script: str = "cosa.sh", sbatch: tuple[str, ...] = TWO_NODES, **variables: str
    ) -> str:
        """Submit a script of slurm/ with options for its program; returns the job's number."""
        command = ("sbatch", "--parsable", *sbatch, f"slurm/{script}")
        # This checkout, whichever the interpreter has installed; and patience, as the machine may be busy.
        ours = {"COSA_PYTHON": sys.executable, "PYTHONPATH": str(PROJECT), "COSA_WAIT": "900"}
        return self.command(*command, *words, **ours, **variables)

    def number(self, task: str) -> str:
        """Number of an array's task (ARRAY_TASK) as a job of its own."""
        return re.findall(r"JobId=(\d+)", self.command("scontrol", "show", "job", task, "-o"))[0]

    def log(self, job: str) -> str:
        """What a job has said so far."""
        path = self.work / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def story(self, job: str) -> str:
        """The ends of a job's log and of its nodes' logs, to explain a failure."""
        nodes = sorted((self.work / "outputs" / "slurm" / job).glob("node-*.log"))
        texts = {"job": self.log(job), **{path.name: path.read_text() for path in nodes}}
        return "\n".join(f"== {name}\n{text[-2500:]}" for name, text in texts.items())

    def state(self, job: str) -> JobState:
        """How a job stands; asks again if the controller, which may be busy, does not say."""
        for pause in (1, 2, 4, 8, 0):
            try:
                text = self.command("scontrol", "show", "job", job, "-o")
                break
            except CommandError:
                if not pause:
                    raise
                time.sleep(pause)
        fields = dict(re.findall(r"(\w+)=(\S+)", text))
        return JobState(fields["JobState"], int(fields["ExitCode"].split(":")[0]), int(fields["Restarts"]))

    def await_end(self, job: str, seconds: float) -> JobState:
        """Wait until a job has ended and SLURM has cleaned up behind it.

        Raises:
            TimeoutError: it goes on.
        """
        wait_until(lambda: self.state(job).ended, seconds, lambda: f"job {job} is {self.state(job)}")
        queued = ("squeue", "-h", "-j", job)
        wait_until(lambda: not self.command(*queued), seconds, lambda: self.command(*queued))
        return self.state(job)

    def processes(self) -> dict[str, dict[int, str]]:
        """Number -> command line of everything that runs on each node."""
        record = Record.read(self.name)
        inits = [children(holder)[0] for holder in record.holders]
        return {node: commands_in_namespace_of(pid) for node, pid in zip(record.nodes, inits, strict=True)}

    def private_files(self) -> list[str]:
        """What lies in the nodes' own /tmp and /dev/shm, as NODE/tmp/NAME."""
        record = Record.read(self.name)
        shared = {Path(folder).parts[2] for folder in shared_folders()}
        found = []
        for node, holder in zip(record.nodes, record.holders, strict=True):
            root = Path(f"/proc/{children(holder)[0]}/root")
            for folder in ("tmp", "dev/shm"):
                names = {path.name for path in (root / folder).iterdir()} - shared
                found += [f"{node}/{folder}/{name}" for name in names]
        return sorted(found)
