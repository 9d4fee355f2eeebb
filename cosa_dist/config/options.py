"""The flat view of a configuration: dotted keys with type, default and meaning.

It serves three readers: the command line (`--help` and overrides), the tracker (parameters), and the
error messages (known names).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from cosa_dist.config.schema import RunConfig


@dataclass(frozen=True)
class Option:
    """One setting: its dotted key, the type in words, the default and what it means."""

    key: str
    kind: str
    default: Any
    meaning: str


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    return getattr(annotation, "__name__", str(annotation))


def options(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Option]:
    """Yield every option of the configuration, sections flattened to dotted keys."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from options(annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        yield Option(f"{prefix}{name}", _type_name(annotation), default, field.description or "")


def known_keys() -> list[str]:
    """All dotted keys of the configuration."""
    return [option.key for option in options()]


def text_keys() -> set[str]:
    """The dotted keys whose values are texts: names, paths, choices among words."""
    return {option.key for option in options() if option.kind == "str" or "|" in option.kind}


def flatten(config: RunConfig) -> dict[str, str]:
    """Return `{dotted key: value as text}` of every option, for the tracker."""

    def walk(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and key not in leaves:
                yield from walk(value, f"{key}.")
            else:
                yield key, str(value)

    leaves = set(known_keys())
    return dict(walk(config.model_dump(mode="json"), ""))
