"""Every command that README.md and docs/*.md show, and what a reader sees beside it.

A command is a line of a `bash` block or of a block indented by four spaces, an inline span that begins with
a program or a job, or a cell under the heading `command` of a table about `jobs/benchmark.py`. A block that
begins with `#!` is a file. A span with `...` between its words is a pattern, not a command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
PROGRAMS = ("python", "make", "sbatch", "ray", "mlflow", ".venv/bin/mlflow", "OMP_NUM_THREADS=1")
SCRIPT = re.compile(r"(jobs|sweeps)/\w+\.py\b")
NEED = re.compile(r"\b(GPUs?|Ray cluster|Ray nodes|SLURM|needs|downloads|hours?|minutes)\b")
"""words that tell a reader what a command takes that a test has not"""


@dataclass(frozen=True)
class Command:
    """One command: its page, its text without comment, and what stands beside it."""

    page: str
    text: str
    beside: str

    @property
    def words(self) -> list[str]:
        """The words as a shell sees them."""
        return shlex.split(self.text)

    @property
    def is_marked(self) -> bool:
        """Whether a reader sees what the command needs."""
        return self.words[0] == "sbatch" or bool(NEED.search(self.beside))


def without_comment(line: str) -> tuple[str, str]:
    """The command and the comment after it."""
    text, _, comment = re.sub(r"\s#\s", "\0", line, count=1).partition("\0")
    return text.strip(), comment.strip()


def of_block(page: str, before: str, lines: list[str]) -> Iterator[Command]:
    """Commands of a block; a comment line speaks for the commands under it, up to the next empty line."""
    above = ""
    for number, line in enumerate(lines):
        if line.startswith("#"):
            above = f"{above} {line}" if number and lines[number - 1].startswith("#") else line
        elif not line.strip():
            above = ""
        else:
            text, comment = without_comment(line)
            yield Command(page, text, f"{before} {above} {comment}")


def is_command(span: str) -> bool:
    """Whether an inline span is a command with words of its own."""
    first, _, rest = span.partition(" ")
    if "..." in span or not rest:
        return False
    if first == "sbatch":
        return "slurm/" in rest
    if first in ("ray", "mlflow"):
        return False
    return first in PROGRAMS or bool(SCRIPT.fullmatch(first))


def of_prose(page: str, text: str) -> Iterator[Command]:
    """Commands in the text around the blocks; what stands in the same paragraph or row is beside them."""
    heading = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for part in paragraph.splitlines() if paragraph.startswith("|") else [paragraph]:
            cells = [cell.strip() for cell in part.strip("|").split(" | ")]
            heading = cells[0] if part.startswith("| command") or not part.startswith("|") else heading
            for span in re.findall(r"`([^`]+)`", part):
                span = " ".join(span.split())
                if is_command(span):
                    words = span if not SCRIPT.match(span) else f"python {span}"
                    yield Command(page, words, part)
                elif heading == "command" and cells[0].startswith(f"`{span}`"):
                    yield Command(page, f"python jobs/benchmark.py {span}", part)


def commands_of(path: Path) -> list[Command]:
    """All commands of a page, each text once."""
    page, text, found = path.stem, path.read_text(encoding="utf-8"), []
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for match in fence.finditer(text):
        language, block = match.groups()
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        if language == "bash" and not block.startswith("#!"):
            found += of_block(page, before, block.splitlines())
    text = fence.sub("", text)
    indented = re.compile(r"(?:^ {4}(?:python|make|sbatch) .*\n)+", re.MULTILINE)
    for block in indented.findall(text):
        found += of_block(page, "", [line.strip() for line in block.splitlines()])
    found += of_prose(page, indented.sub("", text))
    by_text: dict[str, Command] = {}
    for command in found:
        earlier = by_text.get(command.text)
        beside = f"{earlier.beside} {command.beside}" if earlier else command.beside
        by_text[command.text] = Command(page, command.text, beside)
    return list(by_text.values())


def all_commands() -> list[Command]:
    """All commands of all pages."""
    return [command for path in PAGES for command in commands_of(path)]


def settings_of(path: Path) -> list[str]:
    """Inline spans that give options of a run with values, such as `--losses.energy 0`."""
    found = re.findall(r"`(--[a-z_]+\.[a-z_.]+[\s=][^`]+)`", path.read_text(encoding="utf-8"))
    spans = [" ".join(span.split()) for span in found]
    return [span for span in spans if "..." not in span and "VALUE" not in span]
