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
    """Interrupted before anything was made; there is nothing to resume."""


@dataclass
class Start:
    """How far a job has come."""

    made: bool = False
    """whether there is something new to resume"""


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
    """Return `; did you mean X?` for the known name (or last part of one) closest to `name`, or ''."""
    names = list(known)
    last = {candidate.rsplit(".", 1)[-1]: candidate for candidate in names}
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    tail = difflib.get_close_matches(str(name).rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    found = [*close, *(last[key] for key in tail)]
    return f"; did you mean {found[0]}?" if found else ""


def unknown_option(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Say that there is no option `key`, with its present name if it was renamed, or the nearest one."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"{prefix}{key} is now called {prefix}{new}{key[len(old) :]}"
    return f"unknown option {prefix}{key}{nearest(key, known)}"


def describe(error: ValidationError, known: Iterable[str]) -> list[str]:
    """Turn a pydantic error into one line per problem; `known` are all dotted keys that exist."""
    names = list(known)
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(unknown_option(key, names))
        elif item["type"] == "model_type":
            lines.append(f"{key} = {item['input']!r}: this is a section: give it options, or leave it out")
        elif not key or (item["type"] == "value_error" and isinstance(item["input"], dict)):
            lines.append(message)
        else:
            option, _, form = key.rpartition(".")
            # Of an option that may be a word or a number, each form that it is not is a problem of its own.
            if form in ("int", "constrained-int") or form.startswith("literal["):
                key = option
            start = f"{key} = {item['input']!r}: "
            if lines and lines[-1].startswith(start):
                lines[-1] += f", or: {message}"
            else:
                lines.append(start + message)
    return lines
