"""Configuration errors in one readable line: the key, the value, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

RENAMED = {
    "losses.aux_share": "losses.aux_weight",
}
"""options (or whole sections) of earlier versions and their present names"""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is meant for the user as it stands."""


class StartInterruptedError(KeyboardInterrupt):
    """Interrupted before anything was made; there is nothing to go on with."""


@dataclass
class Start:
    """How far a job has come."""

    made: bool = False
    """whether there is something new to go on with"""


@contextmanager
def starting() -> Iterator[Start]:
    """Turn an interruption of the block into a `StartInterruptedError` as long as nothing is made."""
    start = Start()
    try:
        yield start
    except KeyboardInterrupt:
        if start.made:
            raise
        raise StartInterruptedError from None


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or an empty string."""
    name, names = str(name), list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        last = {candidate.rsplit(".", 1)[-1]: candidate for candidate in names}
        tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
        close = [last[key] for key in tail]
    return f"; did you mean {close[0]}?" if close else ""


def unknown_option(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Say that there is no option `key`, with its present name if it was renamed, or the nearest one."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"{prefix}{key} is now called {prefix}{new}{key[len(old) :]}"
    return f"unknown option {prefix}{key}{nearest(key, known)}"


def describe(error: ValidationError, known: Iterable[str]) -> list[str]:
    """Turn a pydantic error into one line per problem.

    Args:
        error: what pydantic raised.
        known: all dotted keys that exist.
    """
    names = list(known)
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(unknown_option(key, names))
        elif item["type"] == "model_type":
            lines.append(f"{key} = {item['input']!r}: this is a section: give it options, or leave it out")
        elif not key:
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return lines
