"""Size, names and docstrings of the code, by its syntax; each rule is shown to report a bad one."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTED = ("cosa_dist", "jobs", "sweeps", "slurm")
FOLDERS = (*DOCUMENTED, "tests", ".ci")
TEXT = {".py", ".sh", ".yaml", ".yml", ".toml", ".md", ".txt", ".cfg", ""}
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 50
LINES_OF_THE_LOOP = 60
SPOKEN_FOR = {"property", "cached_property", "setter", "overload", "override"}
THE_LOOP = ("cosa_dist/training/step.py", "cosa_dist/training/loop.py")
EMPTY_NAMES = re.compile(r"^(utils?|helpers?|misc|common|tools?)$")
# Written in pieces, so that this file passes its own rules.
UNFINISHED = (*"todo fixme xxx hack".upper().split(), "NotImplemented" + "Error")
LEFT_OPEN = re.compile(rf"\b({'|'.join(UNFINISHED)})\b")
MACHINE_PATH = re.compile(r"(?<![\w.$})*-])/(work|root|home(?!/me/)|Users)/")  # "me" is nobody: an example

Function = ast.FunctionDef | ast.AsyncFunctionDef


def missing_docstrings(source: str, path: str) -> list[str]:
    """The module, and each public class, function and method that has no docstring.

    Properties, overloads and `__dunder__` methods speak through their class; a function inside a
    function is private.
    """
    tree = ast.parse(source, path)
    found = [] if ast.get_docstring(tree) else [f"{path}: the module has no docstring"]
    for node in public_definitions(tree):
        if not ast.get_docstring(node):
            found.append(f"{path}:{node.lineno}: {node.name} has no docstring")
    return found


def public_definitions(parent: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of those classes."""
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {re.split(r"[.(]", ast.unparse(d))[-1] for d in node.decorator_list}
        if not decorators & SPOKEN_FOR:
            yield node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node)


def too_long(source: str, path: str) -> list[str]:
    """The file over its limit of lines, and each function over its own."""
    count = len(source.splitlines())
    found = [f"{path}: {count} lines, over {LINES_OF_A_FILE}"] if count > LINES_OF_A_FILE else []
    limit = LINES_OF_THE_LOOP if path in THE_LOOP else LINES_OF_A_FUNCTION
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > limit:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, over {limit}")
    return found


def empty_names(path: str) -> list[str]:
    """The parts of a path that say nothing about what is inside."""
    parts = [Path(part).stem for part in Path(path).parts]
    return [f"{path}: '{part}' says nothing" for part in parts if EMPTY_NAMES.match(part)]


def bad_words(text: str, path: str) -> list[str]:
    """Each line that leaves work open or names a folder of one machine."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if LEFT_OPEN.search(line):
            found.append(f"{path}:{number}: leaves something open: {line.strip()}")
        if MACHINE_PATH.search(line):
            found.append(f"{path}:{number}: names a folder of one machine: {line.strip()}")
    return found


def files(folders: tuple[str, ...], suffixes: set[str]) -> list[str]:
    """Paths of the files in these folders with one of these suffixes, from the project on."""
    return sorted(
        path.relative_to(PROJECT).as_posix()
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    )


def findings(rule: Callable[[str, str], list[str]], paths: list[str]) -> str:
    """What a rule of (content, path) finds in these files, one finding a line."""
    return "\n".join(line for path in paths for line in rule((PROJECT / path).read_text(), path))


def test_everything_public_has_a_docstring() -> None:
    assert findings(missing_docstrings, files(DOCUMENTED, {".py"})) == ""


def test_files_and_functions_stay_short() -> None:
    assert findings(too_long, files(FOLDERS, {".py"})) == ""


def test_names_say_what_is_inside() -> None:
    assert [line for path in files(FOLDERS, TEXT) for line in empty_names(path)] == []


def test_nothing_is_left_open_and_no_machine_is_named() -> None:
    top = [p.name for p in PROJECT.iterdir() if p.is_file() and p.suffix in TEXT]
    paths = [*files(FOLDERS, TEXT), *sorted(set(top) - {".git", ".coverage"})]
    assert findings(bad_words, paths) == ""


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("x = 1", 1),
        ('"""M."""\ndef open_door(): ...', 1),
        ('"""M."""\nclass Door:\n    def open(self): ...', 2),
        ('"""M."""\nclass Door:\n    """D."""\n    @staticmethod\n    def open(): ...', 1),
        ('"""M."""\nasync def open_door(): ...', 1),
        ('"""M."""\ndef _private(): ...\nclass Door:\n    """D."""\n    def __len__(self): ...', 0),
        ('"""M."""\nclass Door:\n    """D."""\n    @property\n    def width(self): ...', 0),
        ('"""M."""\nclass Door:\n    """D."""\n    height: int = 2', 0),
        ('"""M."""\ndef outer():\n    """O."""\n    def inner(): ...', 0),
    ],
)
def test_a_missing_docstring_is_reported(source: str, count: int) -> None:
    assert len(missing_docstrings(source, "bad.py")) == count


def test_length_is_reported_from_the_first_line_over_the_limit() -> None:
    def function(lines: int) -> str:
        return "def f():\n" + "    x = 1\n" * (lines - 1)

    assert too_long("x = 1\n" * 400, "a.py") == []
    assert too_long("x = 1\n" * 401, "a.py") == ["a.py: 401 lines, over 400"]
    assert too_long(function(50), "a.py") == []
    assert too_long(function(51), "a.py") == ["a.py:1: f has 51 lines, over 50"]
    assert too_long(function(60), "cosa_dist/training/loop.py") == []
    assert too_long(function(61), "cosa_dist/training/loop.py") != []
    assert too_long("class C:\n    def m(self):\n" + "        x = 1\n" * 50, "a.py") != []


@pytest.mark.parametrize("path", ["a/utils.py", "a/common/loss.py", "a/helpers.py", "a/misc.sh"])
def test_an_empty_name_is_reported(path: str) -> None:
    assert len(empty_names(path)) == 1
    assert empty_names("cosa_dist/losses/energy.py") == []


@pytest.mark.parametrize(
    "line",
    [
        "# " + "TO" + "DO: later",
        "raise " + "NotImplemented" + "Error",
        "data: /" + "home/someone/voc",
        'root = "/' + 'work/shared"',
        "cd /" + "root/project",
        "cd /" + "home/somebody",
        "cd /" + "home/melissa/",
    ],
)
def test_bad_words_are_reported(line: str) -> None:
    assert len(bad_words(f"fine\n{line}\n", "a.py")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "https://example.org/" + "home/page",
        "work" + "/shared",
        "$SCRATCH/" + "work/voc",
        "a method",
        "/" + "home/" + "me/out",
    ],
)
def test_ordinary_words_are_not_reported(line: str) -> None:
    assert bad_words(line, "a.py") == []
