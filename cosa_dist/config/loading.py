"""From recipe, file and overrides to a validated `RunConfig`.

Order of precedence, lowest first: defaults, recipe (`--recipe NAME` from this package or a path), file
(`--config F.yaml`), dotted overrides (`--losses.energy 0`). Values of overrides are read as YAML, so that
`--data.scale_range "[0.5, 1]"` and `--training.compile true` mean what they look like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cosa_dist.config.errors import ConfigError, describe, nearest
from cosa_dist.config.options import known_keys
from cosa_dist.config.schema import RunConfig

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of options is needed")
    return values


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a recipe by its name in this package or by path; its name becomes `recipe`.

    Raises:
        ConfigError: neither a known name nor a file.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        path = RECIPES / f"{name_or_path}.yaml"
        if not path.is_file():
            names = recipe_names()
            raise ConfigError(
                f"no recipe named {name_or_path!r}; there are {', '.join(names)}"
                f"{nearest(name_or_path, names)}"
            )
    return {"recipe": path.stem, **read_yaml(path)}


VALUES = ("backbone_options", "options")
"""options that are mappings themselves: a later one replaces an earlier one"""


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `extra` on top, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        both_sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        if both_sections and key not in VALUES:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"a.b": 1}` into `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return result


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read `--a.b VALUE` and `--a.b=VALUE` pairs of a command line into dotted keys.

    Raises:
        ConfigError: an unknown option, a missing value, or a value that is not YAML.
    """
    known = known_keys()
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"command line: unexpected {word!r}; options look like --a.b VALUE")
        key, equals, value = word[2:].partition("=")
        if key not in known:
            raise ConfigError(f"command line: unknown option --{key}{nearest(key, known)}")
        if not equals:
            if not rest:
                raise ConfigError(f"command line: --{key} needs a value")
            value = rest.pop(0)
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"command line: --{key} {value!r} is not a YAML value") from None
        if found[key] is None:
            found[key] = ""
    return found


def build_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Validate a nested mapping.

    Raises:
        ConfigError: naming every wrong key or value.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, known_keys(), source)) from None


def load_config(
    recipe: str | None = None,
    file: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> RunConfig:
    """Resolve recipe, file and overrides to a `RunConfig`.

    Raises:
        ConfigError: one line per problem.
    """
    values = read_recipe(recipe) if recipe else {}
    if file:
        values = merge(values, read_yaml(Path(file)))
    dotted = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    values = merge(values, nested(dotted))
    return build_config(values, f"recipe {recipe}" if recipe else file or "configuration")


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `--config` reads back to the same run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
