"""What belongs to a test cluster, on disk, so that taking it down removes that and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.slurm.machine import SYSTEM_PATH
from tests.slurm.processes import Process

PLACE = Path("/var/tmp")  # every node sees it; /tmp is each node's own


def base_of(name: str) -> Path:
    """The folder of the cluster with this name."""
    return PLACE / f"cosa-slurm-{name}"


@dataclass
class Record:
    """A cluster's name and nodes, who started it, and every process that it started itself."""

    name: str
    nodes: list[str]
    owner: Process
    processes: list[Process] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)
    """the process above each node's process 1, in the order of nodes"""

    @property
    def base(self) -> Path:
        """The cluster's folder."""
        return base_of(self.name)

    @classmethod
    def read(cls, name: str) -> Record:
        """The record of a cluster.

        Raises:
            FileNotFoundError: there is no cluster of this name.
        """
        values = json.loads((base_of(name) / "cluster.json").read_text())
        values["owner"] = Process(**values["owner"])
        values["processes"] = [Process(**process) for process in values["processes"]]
        return cls(**values)

    def write(self) -> None:
        """Keep the record in the cluster's folder."""
        temporary = self.base / ".cluster.json.tmp"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(self.base / "cluster.json")

    def start(self, log: str, *command: str) -> int:
        """Start a daemon, its words in a log file, and record it; returns its number."""
        with (self.base / "log" / log).open("ab") as words:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
                env={**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.base / "slurm.conf")},
            )
        self.processes.append(Process.of(process.pid))
        self.write()
        return process.pid
