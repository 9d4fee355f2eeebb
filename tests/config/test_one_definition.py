"""Every setting is defined once: in its section of the configuration, and in no class beside it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import cosa_dist
from cosa_dist.config.schema import RunConfig

ENOUGH = 2
"""This many common names with the same type and default are no accident."""


def sections(model: type[BaseModel] = RunConfig) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def defaults(cls: type) -> dict[str, object]:
    """Fields of a model, dataclass or named tuple that have a default."""
    if issubclass(cls, BaseModel):
        return {name: f.default for name, f in cls.model_fields.items() if not f.is_required()}
    if dataclasses.is_dataclass(cls):
        return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    return dict(getattr(cls, "_field_defaults", {}))


def classes() -> Iterator[type]:
    """Every class that the package defines, but for the sections themselves."""
    known = set(sections())
    for module in pkgutil.walk_packages(cosa_dist.__path__, "cosa_dist."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and cls not in known:
                yield cls


def repeated(cls: type, section: type[BaseModel]) -> set[str]:
    """Fields of a class that a section has too, with the same default (that is not the empty text)."""
    own = defaults(cls)
    shared = defaults(section).items()
    return {name for name, value in shared if value != "" and name in own and own[name] == value}


def test_no_class_of_the_package_repeats_a_section():
    twins = [
        f"{cls.__module__}.{cls.__name__} repeats {sorted(found)} of {section.__name__}"
        for cls in classes()
        for section in sections()
        if len(found := repeated(cls, section)) >= ENOUGH
    ]
    assert twins == []


@pytest.mark.parametrize(("energy", "aux_weight", "count"), [(0.05, 0.5, 2), (0.05, 0.4, 1)])
def test_a_twin_is_found(energy, aux_weight, count):
    twin = dataclasses.make_dataclass(
        "LossWeights", [("energy", float, energy), ("aux_weight", float, aux_weight), ("other", int, 1)]
    )
    assert max(len(repeated(twin, section)) for section in sections()) == count
