"""An ablation as data: parts of the method with the options that switch them, and combinations of parts.

parts: {separation: {with: {losses.separation: 0.1}, without: {losses.separation: 0}}}
combinations: {without: [], with: [separation]}
defaults: {evaluation.crf.enabled: true}

A combination becomes options on top of a recipe: `with` of the parts it names, `without` of all others.
`defaults` are options of every run of the ablation that the command line may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosa_dist.config.errors import ConfigError, nearest, unknown_option
from cosa_dist.config.loading import read_yaml
from cosa_dist.config.options import known_keys


@dataclass(frozen=True)
class Combination:
    """One row of an ablation table."""

    name: str
    parts: tuple[str, ...]
    """parts that are switched on"""
    options: dict[str, Any]
    """dotted options on top of the recipe"""


@dataclass(frozen=True)
class Ablation:
    """What is compared."""

    parts: tuple[str, ...]
    combinations: tuple[Combination, ...]
    defaults: dict[str, Any]
    """dotted options of every run, unless the command line says otherwise"""

    def chosen(self, names: list[str]) -> tuple[Combination, ...]:
        """The combinations of these names, in the ablation's order; all if none is named.

        Raises:
            ConfigError: a name that is not there.
        """
        known = [combination.name for combination in self.combinations]
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"no combination named {name!r}; there are {', '.join(known)}{nearest(name, known)}"
                )
        return tuple(c for c in self.combinations if not names or c.name in names)


def read_ablation(path: Path) -> Ablation:
    """Read an ablation's file.

    Raises:
        ConfigError: no such file, a section missing or of the wrong kind, an unknown part or option.
    """
    values = read_yaml(path)
    for key in values:
        if key not in ("parts", "combinations", "defaults"):
            raise ConfigError(f"{path}: unknown section {key!r}; parts, combinations and defaults are known")
    parts = _parts(path, values.get("parts"))
    defaults = values.get("defaults") or {}
    _check_options(defaults, f"{path}: defaults")
    combinations = []
    for name, named in _mapping(values.get("combinations"), f"{path}: combinations").items():
        _check_named(path, str(name), named, parts)
        options: dict[str, Any] = {}
        for part, switch in parts.items():
            options |= switch.get("with" if part in named else "without", {})
        combinations.append(Combination(str(name), tuple(named), options))
    return Ablation(tuple(parts), tuple(combinations), dict(defaults))


def _parts(path: Path, value: Any) -> dict[str, Mapping[str, Any]]:
    """The parts by name, each with the options of its two positions."""
    parts = _mapping(value, f"{path}: parts")
    for name, switch in parts.items():
        for position, options in _mapping(switch, f"{path}: part {name}").items():
            if position not in ("with", "without"):
                raise ConfigError(
                    f"{path}: part {name}: unknown key {position!r}; with and without are known"
                )
            _check_options(options, f"{path}: part {name}: {position}")
    return {str(name): switch for name, switch in parts.items()}


def _check_named(path: Path, name: str, named: Any, parts: Mapping[str, Any]) -> None:
    """Refuse a combination that is no list of known parts."""
    if not isinstance(named, list) or not all(isinstance(part, str) for part in named):
        raise ConfigError(f"{path}: combination {name} needs a list of parts, got {named!r}")
    for part in named:
        if part not in parts:
            raise ConfigError(
                f"{path}: combination {name}: unknown part {part!r}{nearest(part, list(parts))}"
            )


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{what} must be a mapping with at least one entry, got {value!r}")
    return value


def _check_options(options: Any, what: str) -> None:
    if not isinstance(options, Mapping):
        raise ConfigError(f"{what} must be a mapping of options, got {options!r}")
    known = known_keys()
    for key in options:
        if key not in known:
            raise ConfigError(f"{what}: {unknown_option(str(key), known)}")


def is_ablation(path: Path) -> bool:
    """Whether a file is an ablation (it has combinations) and not a search space.

    Raises:
        ConfigError: no such file, or not a mapping.
    """
    return "combinations" in read_yaml(path)
