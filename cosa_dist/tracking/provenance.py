"""Where a run comes from: commit, versions and hardware, as tags. The host's name is left out."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

COMMIT_VARIABLE = "COSA_GIT_COMMIT"
LIBRARIES = ("torch", "torchvision", "timm", "ray", "accelerate", "datasets", "mlflow", "numpy", "pillow")


def provenance() -> dict[str, str]:
    """Tags of the code, the libraries and the machine that a run uses; `gpus` is empty without any."""
    # Asked from the driver's tool: asking torch would take GPU memory in this process.
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return {
        "git_commit": git_commit(),
        **{f"version/{name}": version for name, version in package_versions().items()},
        "machine": platform.machine(),
        "cpu_count": str(usable_cpus()),
        "gpus": ", ".join(line.strip() for line in gpus.splitlines()),
    }


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those of its affinity, and no more than its control group's quota.

    A container or a batch job often has a part of its machine. `root` is where `proc` and `sys` lie.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(int(quota) for quota in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The CPUs that the control groups of this process, and those above them, allow (versions 1 and 2)."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounts / "cpu" if controllers else mounts
        # In a container the file system often begins at the group itself, whatever its path is called.
        for folder in {top, *(top / part for part in _with_parents(group.strip("/")))}:
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            limit = " ".join(_text(folder / file) for file in files).split()
            if len(limit) == 2 and all(number.isdecimal() for number in limit):  # `max` or -1: no limit
                yield int(limit[0]) / int(limit[1])


def _with_parents(group: str) -> list[str]:
    parts = group.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts) + 1)] if group else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def git_commit(file: Path = Path(__file__)) -> str:
    """Commit of the repository that holds `file`, `<hash>-dirty` if tracked files are changed.

    Without a repository (a Ray job's working directory has none) the variable `COSA_GIT_COMMIT` counts, else
    the answer is `unknown`.
    """
    folder = file.resolve().parent
    # An installed copy may lie inside the repository of another project: then it is not tracked.
    tracked = _output("git", "-C", str(folder), "ls-files", "--error-unmatch", file.name)
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD") if tracked else None
    if not commit:
        return os.environ.get(COMMIT_VARIABLE, "").strip() or "unknown"
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return commit + ("-dirty" if changes else "")


def package_versions() -> dict[str, str]:
    """Installed versions of Python and of the main libraries."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _output(*command: str) -> str | None:
    """Standard output of a command, None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
