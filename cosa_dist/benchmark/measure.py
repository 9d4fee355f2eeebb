"""How a measurement is made and shown: ways in turn, the machine's rate, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from cosa_dist.atomic import atomic_write
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.stopwatch import synchroniser
from cosa_dist.tracking.provenance import usable_cpus

Cell = str | int | float | None
Row = dict[str, Cell]
SIDE_ON_CPU = 2048
SIDE_ON_GPU = 8192


@dataclass(frozen=True)
class Table:
    """Rows with the same columns, in the order of the first row's keys."""

    title: str
    rows: list[Row]

    def shown(self) -> RichTable:
        """The table for a terminal; words to the left, numbers to the right."""
        shown = RichTable(title=self.title, title_justify="left")
        columns = list(self.rows[0]) if self.rows else []
        for column in columns:
            words = any(isinstance(row.get(column), str) for row in self.rows)
            shown.add_column(column, justify="left" if words else "right")
        for row in self.rows:
            shown.add_row(*(as_text(row.get(column)) for column in columns))
        return shown


@dataclass
class Report:
    """The result of one measurement."""

    name: str
    facts: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """figures that cannot be right"""

    def show(self, console: Console) -> None:
        """Print facts, tables and notes."""
        console.print("  ".join(f"{name} {value}" for name, value in self.facts.items()), highlight=False)
        for table in self.tables:
            console.print(table.shown())
        for note in self.notes:
            console.print(f"- {note}", highlight=False)
        for failure in self.failures:
            console.print(f"cannot be right: {failure}", highlight=False)

    def store(self, path: Path) -> None:
        """Write the report as a JSON list of one, numbers with all their digits."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps([asdict(self)], indent=1) + "\n")


def as_text(cell: Cell) -> str:
    """A cell in four significant digits; nothing for None."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return "" if cell is None else str(cell)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a reader must know of the machine to compare figures."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cores": usable_cpus(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "matmul": torch.get_float32_matmul_precision(),
    }


def run_facts(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """The machine's facts and the sizes of the run."""
    return {
        **machine_facts(device),
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "crop": config.data.crop_size,
        "batch": config.training.global_batch_size,
    }


def processor_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as the system gives it."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_turn(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    synchronise: Callable[[], None] = lambda: None,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each round of several ways to do a thing, turn by turn, so that all meet the same machine.

    The first `warm_up` calls of each do not count; a call is timed from an idle device to an idle device.
    Raises ValueError for less than one round or a negative warm-up.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"a measurement needs 1 round and 0 warm-up or more, not {rounds} and {warm_up}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + rounds):
        for name, work in ways.items():
            synchronise()
            started = clock()
            work()
            synchronise()
            if turn >= warm_up:
                seconds[name].append(clock() - started)
    return seconds


def median_seconds(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of a call after one that does not count."""
    return statistics.median(in_turn({"": work}, rounds, synchroniser(device))[""])


def matrix_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, side: int = 0, seconds: float | None = None
) -> float:
    """Operations per second of PyTorch's product of two large square matrices: what an MFU is a fraction of.

    The best round counts, as the peak is a property of the machine and not of its load; with `seconds` (1 by
    default on a GPU) the mean over so long, as a cool chip is faster for ten products than in training.
    """
    side = side or (SIDE_ON_GPU if device.type == "cuda" else SIDE_ON_CPU)
    left = torch.rand(side, side, device=device).to(dtype)
    right = torch.rand(side, side, device=device).to(dtype)
    result = torch.empty_like(left)

    def product(times: int = 1) -> Tensor:
        for _ in range(times):
            torch.mm(left, right, out=result)
        return result

    each = min(in_turn({"product": product}, 8, synchroniser(device), warm_up=2)["product"])
    wanted = (1.0 if device.type == "cuda" else 0.0) if seconds is None else seconds
    if wanted:
        count = 1 + int(wanted / each)
        each = in_turn({"product": lambda: product(count)}, 1, synchroniser(device))["product"][0] / count
    return 2 * side**3 / each


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here; where the system does not allow it on the CPU, it counts on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux: 5 is the process's own high-water mark
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float:
    """Highest memory in GB since `reset_peak_memory`: of the GPU's tensors, or of this process on the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextmanager
def build_of(commit: str) -> Iterator[Path]:
    """A folder with the code of another commit of this repository; ConfigError where git has none."""
    here = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "build"
        command = ["git", "-C", str(here), "worktree", "add", "--detach", str(build), commit]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise ConfigError(f"--against {commit}: {' '.join(made.stderr.split())}")
        try:
            yield build
        finally:
            command = ["git", "-C", str(here), "worktree", "remove", "--force", str(build)]
            subprocess.run(command, capture_output=True, check=False)


def result_of(build: Path, program: str, *words: str, threads: int = 0) -> Any:
    """What a program prints as JSON, in a process with the code of a build; RuntimeError: it fails."""
    environment = {**os.environ, "PYTHONPATH": str(build)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=build, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the code of {build}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)
