"""What a measurement gives: facts of the machine, tables and notes, in the terminal and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

Cell = str | int | float | None
Row = dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """Rows with the same columns, in the order of the first row's keys."""

    title: str
    rows: list[Row]


@dataclass
class Report:
    """The result of one measurement."""

    name: str
    facts: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The report as JSON; numbers with all their digits."""
        return json.dumps(asdict(self), indent=1)

    def show(self, console: Console) -> None:
        """Print facts, tables and notes."""
        console.print("  ".join(f"{name} {value}" for name, value in self.facts.items()), highlight=False)
        for table in self.tables:
            console.print(_rich(table))
        for note in self.notes:
            console.print(f"- {note}", highlight=False)


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left")
    columns = list(table.rows[0]) if table.rows else []
    for column in columns:
        words = any(isinstance(row.get(column), str) for row in table.rows)
        shown.add_column(column, justify="left" if words else "right")
    for row in table.rows:
        shown.add_row(*(in_words(row.get(column)) for column in columns))
    return shown


def in_words(cell: Cell) -> str:
    """A cell in four significant digits; nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return str(cell)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a reader must know of the machine to compare figures."""
    gpu = device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if gpu else processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "matmul": torch.get_float32_matmul_precision(),
    }


def processor_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as the system gives it."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def store(reports: Sequence[Report], path: Path) -> None:
    """Write reports as one JSON list.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" + ",\n".join(report.to_json() for report in reports) + "]\n", encoding="utf-8")
