"""The flat view of a configuration: dotted keys with type, default and meaning.

It serves the command line (`--help` and overrides), the tracker (parameters) and error messages (known
names).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if origin in (Union, UnionType):
        return "|".join(_type_name(choice) for choice in get_args(annotation))
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    return {tuple: "list", dict: "mapping"}.get(origin) or annotation.__name__


def options(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Option]:
    """Yield every option of the configuration, sections flattened to dotted keys."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from options(annotation, f"{prefix}{name}.")
        else:
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
    values = config.model_dump(mode="json")
    return {key: str(reduce(dict.__getitem__, key.split("."), values)) for key in known_keys()}
