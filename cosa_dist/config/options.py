"""The flat view of a configuration: dotted keys with type, default and meaning.

It serves the command line (`--help` and overrides), the tracker (parameters) and error messages (known
names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def has_option(values: Mapping[str, Any], key: str) -> bool:
    """Whether nested values have a dotted option; what an earlier version wrote lacks those of later ones."""
    name, _, rest = key.partition(".")
    return name in values and (not rest or has_option(values[name], rest))


def other_options(
    asked: Mapping[str, Any], found: Mapping[str, Any], recorded: Mapping[str, Any]
) -> list[str]:
    """Dotted options asked for otherwise than found, of those `recorded`, without `distributed.*`."""
    others = [key for key in asked if asked[key] != found[key] and not key.startswith("distributed.")]
    return [key for key in others if has_option(recorded, key)]


def flatten(config: RunConfig) -> dict[str, str]:
    """Return `{dotted key: value as text}` of every option, for the tracker."""
    values = config.model_dump(mode="json")
    return {key: str(reduce(dict.__getitem__, key.split("."), values)) for key in known_keys()}
