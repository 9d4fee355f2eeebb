"""From recipe, file and overrides to a validated `RunConfig`.

Order of precedence, lowest first: defaults, recipe (`--recipe NAME` from this package or a path), file
(`--config F.yaml`), dotted overrides (`--losses.energy 0`). Values of overrides are read as YAML, so that
`--data.scale_range "[0.5, 1]"` and `--training.compile true` mean what they look like; a text (a name, a
path) is taken as it stands. YAML is that of version 1.2, in which `1e-5` is a number, and `12:30`, `1_000`,
`no` and a date are texts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cosa_dist.config.errors import ConfigError, describe, nearest, unknown_option
from cosa_dist.config.options import known_keys, text_keys
from cosa_dist.config.paths import place
from cosa_dist.config.schema import EvaluationConfig, RunConfig

log = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
COMMAND_LINE = "command line"
MAPPINGS = ("backbone_options", "options")
"""options that are mappings themselves: a later one replaces an earlier one"""
SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
"""YAML 1.2's core schema, and the merging of mappings: kind, form, and what it begins with"""


class Loader(yaml.SafeLoader):
    """Plain values by YAML 1.2, where PyYAML has those of 1.1; a key that occurs twice is refused."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # as the base class has it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; ConstructorError if a key occurs twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read `010` as ten, `0o10` as eight, `0x10` as sixteen."""
        text = self.construct_scalar(node)
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)


class Dumper(yaml.SafeDumper):
    """Puts quotation marks around a text that YAML 1.1 or 1.2 would read as something else."""


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
for _kind, _form, _first in SCALARS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form})$"), _first)


def parse_yaml(text: str) -> Any:
    """Read YAML; ValueError if it is none, or a key occurs twice."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).replace('in "<unicode string>", ', "at ").split())) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError if there is no such file, or it is something else."""
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of options is needed")
    return values


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_recipe_file(name_or_path: str) -> bool:
    """Whether a recipe is named by path."""
    return "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a recipe by its name in this package or by path; its name becomes `recipe`.

    Raises:
        ConfigError: neither a known name nor a file.
    """
    path = place(name_or_path) if is_recipe_file(name_or_path) else RECIPES / f"{name_or_path}.yaml"
    if path.parent == RECIPES and not path.is_file():
        names = recipe_names()
        there = f"there are {', '.join(names)}{nearest(name_or_path, names)}"
        raise ConfigError(f"no recipe named {name_or_path!r}; {there}")
    return {"recipe": path.stem, **read_yaml(path)}


def merge(base: Mapping[str, Any], extra: Mapping[str, Any], disjoint: str = "") -> dict[str, Any]:
    """Return `base` with `extra` on top, section by section.

    Where `extra` names another `evaluation.protocol`, that gives what `base` does not set otherwise than its
    own protocol.

    Raises:
        ConfigError: the source `disjoint` is named, and an option is in both.
    """
    merged = dict(base)
    protocol, default = "protocol", EvaluationConfig().protocol  # only `evaluation` has such an option
    if not disjoint and protocol in extra and extra[protocol] != base.get(protocol, default):
        merged = EvaluationConfig.without_own(base)
    for key, value in extra.items():
        both_sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        if both_sections and key not in MAPPINGS:
            merged[key] = merge(merged[key], value, disjoint and f"{disjoint}{key}.")
        elif disjoint and key in merged:
            raise ConfigError(f"{disjoint}{key} occurs twice")
        else:
            merged[key] = value
    return merged


def nested(dotted: Mapping[str, Any], source: str = COMMAND_LINE) -> dict[str, Any]:
    """Turn `{"a.b": 1}` into `{"a": {"b": 1}}`; ConfigError if `source` has an option in both forms."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        for section in reversed(str(key).split(".")):
            value = {section: value}
        result = merge(result, value, disjoint=f"{source}: ")
    return result


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read `--a.b VALUE` and `--a.b=VALUE` pairs of a command line into dotted keys; the later one wins.

    Raises:
        ConfigError: an unknown option, a missing value or one that is not YAML.
    """
    known, texts = known_keys(), text_keys()
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{COMMAND_LINE}: unexpected {word!r}; options look like --a.b VALUE")
        key, equals, value = word[2:].partition("=")
        if key not in known:
            raise ConfigError(f"{COMMAND_LINE}: {unknown_option(key, known, '--')}")
        if not equals:
            if not rest or (rest[0].startswith("--") and rest[0][2:].partition("=")[0] in known):
                raise ConfigError(f"{COMMAND_LINE}: --{key} needs a value")
            value = rest.pop(0)
        parsed = _text(value) if key in texts else _value(key, value)
        if key in found and found[key] != parsed:
            log.warning("--%s is given twice, %r and %r: the later one counts", key, found[key], parsed)
        found[key] = parsed
    return found


def _value(key: str, text: str) -> Any:
    """A value as YAML; nothing becomes the empty text."""
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError(f"{COMMAND_LINE}: --{key} {text!r} is not a YAML value") from None
    return "" if value is None else value


def _text(word: str) -> str:
    """A text as it stands, without quotation marks around it; YAML's words for nothing are empty."""
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    return "" if word in ("~", "null", "Null", "NULL") else word


def build_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Validate a nested mapping; ConfigError names every wrong key or value."""
    return stacked([(source, values)])


def stored_config(values: Mapping[str, Any], source: str) -> RunConfig:
    """Validate a run's own configuration, `completed`."""
    return build_config(completed(values), source)


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that was written down, with what an earlier version did unsaid: ImageNet's colours."""
    return merge({"model": {"normalisation": "imagenet"}}, values)


def load_config(
    recipe: str | None = None,
    file: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    source: str = COMMAND_LINE,
) -> RunConfig:
    """Resolve a recipe (name or path), a YAML file and overrides (words of a command line, or dotted keys).

    Raises:
        ConfigError: one line per problem, with the layer that brought it in; overrides are called `source`.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if recipe:
        layers.append((f"recipe {recipe}", nested(read_recipe(recipe), f"recipe {recipe}")))
    if file:
        path = place(file)
        layers.append((str(path), nested(read_yaml(path), str(path))))
    dotted = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return stacked([*layers, (source, nested(dotted))])


def evaluation_under(evaluation: EvaluationConfig, words: Sequence[str]) -> EvaluationConfig:
    """A run's evaluation with the options `--evaluation.*` of a command line on top.

    `evaluation.protocol` brings its details with it, but leaves what the run sets otherwise than its own
    protocol. ConfigError for an option of another section, or a wrong value.
    """
    overrides = parse_overrides(words)
    if other := next((key for key in overrides if not key.startswith("evaluation.")), ""):
        raise ConfigError(f"{COMMAND_LINE}: --{other}: a trained network takes options of evaluation.* only")
    run = ("the run", {"evaluation": evaluation.model_dump()})
    return stacked([run, (COMMAND_LINE, nested(overrides))]).evaluation


def stacked(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> RunConfig:
    """Validate layers on top of each other; a problem is reported for the first layer that has it."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        values = merge(values, layer)
        try:
            config = RunConfig.model_validate(values)
            sources = {}
        except ValidationError as error:
            sources = {line: sources.get(line, source) for line in describe(error, known_keys())}
    if sources:
        raise ConfigError("\n".join(f"{source}: {line}" for line, source in sources.items()))
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `--config` reads back to the same run."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)
