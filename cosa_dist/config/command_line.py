"""The command line that every training-like job shares: recipe, file, dotted overrides and full help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cosa_dist.config.loading import load_config, recipe_names
from cosa_dist.config.options import options
from cosa_dist.config.schema import RunConfig


def options_help() -> str:
    """Every option with type, default and meaning, one block per section."""
    lines: list[str] = []
    section = ""
    for option in options():
        head = option.key.rpartition(".")[0] or "run"
        if head != section:
            lines.append(f"\n{head}:")
            section = head
        default = "" if option.default == "" else f" = {option.default}"
        lines.append(f"  --{option.key} ({option.kind}{default})\n        {option.meaning}")
    return "\n".join(lines)


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--recipe` and `--config`, whose help lists every option."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"recipes: {', '.join(recipe_names())}\n\noptions (YAML values):{options_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="name of a recipe, or the path of one")
    parser.add_argument("--config", metavar="F.yaml", help="options on top of the recipe")
    return parser


def parse_run(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> tuple[argparse.Namespace, RunConfig]:
    """Parse the command line to the job's own arguments and the resolved configuration.

    Raises:
        ConfigError: one line per problem.
    """
    arguments, rest = parser.parse_known_args(words)
    return arguments, load_config(arguments.recipe, arguments.config, rest)
