"""Whether this machine can hold a test cluster, and the Debian packages that it needs.

A cluster wants root, Linux namespaces, a bridge and SLURM itself. Where SLURM is missing it is installed with
apt-get. What cannot be had is told as one sentence, which the tests give as their reason to skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
TOOLS = ("ip", "nsenter", "unshare", "mount")
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def missing(names: tuple[str, ...]) -> list[str]:
    """Those of the programs that are not installed."""
    return [name for name in names if shutil.which(name, path=SYSTEM_PATH) is None]


def run(*command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and keep what it says; the caller looks at the exit code."""
    environment = {**os.environ, "PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=environment
    )


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = (process.stdout + process.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}"


def _namespace_obstacle() -> str:
    """Try the namespaces and the bridge, all inside a namespace of their own."""
    trial = (
        "ip link add trial0 type bridge",
        "ip link add trial1 type veth peer name trial2",
        "mount -t tmpfs tmpfs /mnt",
    )
    own = ("-n", "-m", "-u", "-i", "-p", "-f", "--mount-proc")
    process = run("unshare", *own, "sh", "-c", " && ".join(trial))
    return f"no namespaces or bridges here: {_last_line(process)}" if process.returncode else ""


def _packages_obstacle() -> str:
    """Install SLURM if it is not there."""
    if not missing((*DAEMONS, *COMMANDS)):
        return ""
    if missing(("apt-get",)):
        return "SLURM is not installed, and there is no apt-get to install it with"
    for arguments in (("update", "-q"), ("install", "-q", "-y", "--no-install-recommends", *PACKAGES)):
        process = run("apt-get", *arguments, timeout=600)
        if process.returncode:
            return f"SLURM is not installed, and apt-get {arguments[0]} failed: {_last_line(process)}"
    absent = missing((*DAEMONS, *COMMANDS))
    return f"SLURM's packages lack {', '.join(absent)}" if absent else ""


def obstacle() -> str:
    """Why no cluster can be started here; empty where one can, and SLURM is then installed."""
    if sys.platform != "linux":
        return f"namespaces need Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "starting SLURM's daemons and network namespaces needs root"
    if absent := missing(TOOLS):
        return f"not installed: {', '.join(absent)} (packages iproute2, util-linux, mount)"
    return _namespace_obstacle() or _packages_obstacle()
