"""An ablation as data: parts of the method with the options that switch them, and combinations of parts.

parts: {separation: {with: {losses.separation: 0.1}, without: {losses.separation: 0}}}
combinations: {without: [], with: [separation]}
defaults: {evaluation.crf.enabled: true}

A combination becomes options on top of a recipe: `with` of the parts it names, `without` of all others.
`defaults` are options of every run of the ablation that the command line may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cosa_dist.config.errors import ConfigError, describe, nearest, unknown_option
from cosa_dist.config.loading import read_yaml
from cosa_dist.config.options import known_keys

SECTIONS = ("parts", "combinations", "defaults", "with", "without")


@dataclass(frozen=True)
class Combination:
    """One row of an ablation table: the parts that are on, and the dotted options on top of the recipe."""

    name: str
    parts: tuple[str, ...]
    options: dict[str, Any]


class Part(BaseModel):
    """The options of a part's two positions."""

    model_config = ConfigDict(extra="forbid")

    on: dict[str, Any] = Field({}, alias="with")
    off: dict[str, Any] = Field({}, alias="without")


class Ablation(BaseModel):
    """What is compared."""

    model_config = ConfigDict(extra="forbid")

    parts: dict[str, Part] = Field({}, min_length=1, validate_default=True)
    named: dict[str, list[str]] = Field({}, alias="combinations", min_length=1, validate_default=True)
    """parts by combination"""
    defaults: dict[str, Any] = {}

    def chosen(self, names: Sequence[str] = ()) -> list[Combination]:
        """The combinations of these names, in the ablation's order; all if none is named."""
        for name in names:
            if name not in self.named:
                raise ConfigError(
                    f"no combination named {name!r}; there are {', '.join(self.named)}"
                    f"{nearest(name, self.named)}"
                )
        return [
            Combination(name, tuple(parts), self._options(parts))
            for name, parts in self.named.items()
            if not names or name in names
        ]

    def _options(self, parts: Sequence[str]) -> dict[str, Any]:
        switches = [part.on if name in parts else part.off for name, part in self.parts.items()]
        return {key: value for switch in switches for key, value in switch.items()}


def read_ablation(path: Path) -> Ablation:
    """Read an ablation's file; `ConfigError` for a wrong section, or an unknown part or option."""
    try:
        ablation = Ablation.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, SECTIONS)[0]}") from None
    _check_options(ablation.defaults, f"{path}: defaults")
    for name, part in ablation.parts.items():
        _check_options({**part.on, **part.off}, f"{path}: part {name}")
    for combination, names in ablation.named.items():
        for name in names:
            if name not in ablation.parts:
                near = nearest(name, ablation.parts)
                raise ConfigError(f"{path}: combination {combination}: unknown part {name!r}{near}")
    return ablation


def _check_options(options: Mapping[str, Any], what: str) -> None:
    known = known_keys()
    for key in options:
        if key not in known:
            raise ConfigError(f"{what}: {unknown_option(key, known)}")


def is_ablation(path: Path) -> bool:
    """Whether a file is an ablation (it has combinations) and not a search space."""
    return "combinations" in read_yaml(path)
