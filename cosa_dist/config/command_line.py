"""The command line that every training-like job shares: recipe, file, dotted overrides and full help."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from itertools import groupby

from cosa_dist.config.errors import ConfigError, StartInterruptedError
from cosa_dist.config.loading import recipe_names
from cosa_dist.config.options import Option, options


def options_help() -> str:
    """Every option with type, default and meaning, one block per section."""
    lines: list[str] = []
    for section, group in groupby(options(), lambda option: option.key.rpartition(".")[0] or "run"):
        lines += [f"\n{section}:", *map(_option_help, group)]
    return "\n".join(lines)


def _option_help(option: Option) -> str:
    default = "" if option.default == "" else f" = {option.default}"
    return f"  --{option.key} ({option.kind}{default})\n        {option.meaning}"


def given(text: str) -> str:
    """Type of an option that names something; refused if empty, as from a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give a name, or leave the option out")
    return text


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--recipe` and `--config`, whose help lists every option."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"recipes: {', '.join(recipe_names())}\n\noptions (YAML values):{options_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", type=given, help="name of a recipe, or the path of one")
    parser.add_argument("--config", type=given, metavar="F.yaml", help="options on top of the recipe")
    return parser


def refuse_beside_resume(arguments: argparse.Namespace, others: Iterable[str]) -> None:
    """Raise ConfigError naming those of the options `others` that are given: a resumed run ignores them."""
    beside = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name)]
    if beside:
        raise ConfigError(
            f"--resume {arguments.resume} keeps that run's own settings (config.yaml or sweep.json in "
            f"its folder): leave out {', '.join(beside)}"
        )


def run_job(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, list[str]], None],
    *,
    what: str = "run",
    next_step: str = "continue with --resume",
) -> int:
    """Do a job's work with one line instead of a traceback for what may go wrong; return its exit code.

    Words that the parser does not know are the work's dotted options. `what` is said to have failed,
    `next_step` what to do after an interruption. 0 done, 1 the work failed, 2 it could not start, 130
    interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments, rest = parser.parse_known_args()
    try:
        work(arguments, rest)
    except (ConfigError, ValueError, OSError) as error:
        code, message = 2, f"error: {error}"
    except RuntimeError as error:
        code, message = 1, f"{what} failed: {error}"
    except StartInterruptedError:
        code, message = 130, "stopped; nothing was made, the same command starts again"
    except KeyboardInterrupt:
        code, message = 130, f"stopped; {next_step}"
    else:
        return 0
    print(message, file=sys.stderr)
    return code
