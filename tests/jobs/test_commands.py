"""Every command of README.md and docs/*.md is run by a test, or at least read by its job's own parser.

What no test runs is marked on the page: a reader sees that it needs GPUs, a cluster, hours and the like.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections import Counter
from typing import Any

import pytest

from cosa_dist.config.loading import evaluation_under, load_config, parse_overrides
from cosa_dist.config.schema import EvaluationConfig
from tests.jobs.documented import PAGES, PROJECT, Command, all_commands, commands_of, settings_of
from tests.jobs.test_commands_run import RUN
from tests.jobs.test_tutorial import commands as tutorial_commands

COMMANDS = all_commands()
ELSEWHERE = {
    ".venv/bin/mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db": "tests/reports/test_mlflow_ui.py",
    **dict.fromkeys(tutorial_commands(), "tests/jobs/test_tutorial.py"),
}
"""commands that another test runs"""


class Parsed(BaseException):
    """Thrown out of a job as soon as its command line is read."""

    def __init__(self, arguments: argparse.Namespace, rest: list[str]) -> None:
        super().__init__()
        self.arguments, self.rest = arguments, rest


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Reader of a Python command's words with the parser of its own job."""
    monkeypatch.chdir(tmp_path)
    best = tmp_path / "outputs/sweeps/NAME/best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text("recipe: tiny\n")
    parse, depth = argparse.ArgumentParser.parse_known_args, []

    def outermost(self: argparse.ArgumentParser, *words: Any, **named: Any) -> Any:
        depth.append(self)
        found = parse(self, *words, **named)
        depth.pop()
        if depth:
            return found
        raise Parsed(*found)

    def reading(words: list[str]) -> None:
        words = ["2" if word == "N" else "tiny" if last == "--recipe" and word == "NAME" else word
                 for last, word in zip(["", *words], words, strict=False)]  # fmt: skip
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", outermost)
        monkeypatch.setattr(sys, "argv", words)
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                start(words)
            return
        with pytest.raises(Parsed) as parsed:
            start(words)
        check_rest(words[0], parsed.value)

    return reading


def start(words: list[str]) -> None:
    """Start the script or module that a Python command names."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__")
    else:
        runpy.run_path(str(PROJECT / words[0]), run_name="__main__")


def check_rest(job: str, parsed: Parsed) -> None:
    """Dotted options and recipe of a job that takes them; another job has no words left."""
    if hasattr(parsed.arguments, "recipe") and hasattr(parsed.arguments, "config"):
        load_config(parsed.arguments.recipe, parsed.arguments.config, parsed.rest)
    elif job == "jobs/evaluate.py":
        evaluation_under(EvaluationConfig(), parsed.rest)
    elif job == "jobs/pseudo_masks.py":
        load_config(overrides=parsed.rest)
    else:
        assert parsed.rest == []


def read_any(command: Command, read: Any) -> None:
    """Read a command of any program."""
    words = [word for word in command.words if word != "OMP_NUM_THREADS=1"]
    if words[0] == "python":
        read(words[1:])
    elif words[:3] == ["ray", "job", "submit"]:
        assert words[words.index("--") + 1] == "python"
        read(words[words.index("--") + 2 :])
    elif words[0] == "sbatch":
        script = next(number for number, word in enumerate(words) if word.endswith(".sh"))
        text = (PROJECT / words[script]).read_text()
        program = re.search(r"^run_job (\S+\.py)", text, re.MULTILINE)
        assert program, words[script]
        read([program.group(1), *words[script + 1 :]])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "export":
        assert re.fullmatch(r"[A-Z_]+=\S+", " ".join(words[1:]))
    elif words[0] == "ray":
        from ray.scripts.scripts import cli as ray_cli

        read_by_click(ray_cli, words[1:])
    else:
        from mlflow.cli import cli

        assert words[0].rpartition("/")[2] == "mlflow", f"no test reads {words[0]}"
        read_by_click(cli, words[1:])


def read_by_click(program: Any, words: list[str]) -> None:
    """Read a sub-command of a program that is made with click."""
    command = program.get_command(None, words[0])
    assert command is not None, words[0]
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text}")
def test_a_command_is_read_by_its_own_parser(command, read):
    read_any(command, read)


@pytest.mark.parametrize("words", [
    "python jobs/train.py --recipe voc_mimi",
    "python jobs/train.py --recipe voc_mini --losses.enregy 0",
    "python jobs/train.py --recipe voc_mini --training.steps none",
    "python jobs/pseudo_masks.py RUN --pseudo_masks.refine crf",
    "python jobs/predict.py RUN PHOTOS --out MASKS --overlay",
    "python jobs/ingest.py voc VOC2012 --slpits val --out data/voc",
    "python jobs/no_such_job.py",
    "make no-such-target",
    "sbatch slurm/cosa.sh --recipe nothing",
    "unset RAY_ADDRESS",
    "ray start --haed",
])  # fmt: skip
def test_a_wrong_command_is_found(words, read, capsys):
    with pytest.raises((Exception, pytest.fail.Exception)):
        read_any(Command("page", words, ""), read)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_with_values_are_accepted(page):
    for span in settings_of(page):
        load_config("own", None, parse_overrides(shlex.split(span)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_no_test_runs_is_marked_on_the_page(page):
    unmarked = [c.text for c in commands_of(page) if c.text not in {*RUN, *ELSEWHERE} and not c.is_marked]
    assert unmarked == []


def test_the_tables_name_commands_of_the_pages_and_tests_that_exist(capsys):
    texts = {command.text for command in COMMANDS}
    assert [text for text in {*RUN, *ELSEWHERE} if text not in texts] == []
    assert all((PROJECT / test).is_file() for test in ELSEWHERE.values())
    how = Counter("run" if text in {*RUN, *ELSEWHERE} else "read" for text in texts)
    with capsys.disabled():
        print(f"\n{len(texts)} commands: {how['run']} run by tests, {how['read']} read by parsers and marked")
