"""The packages form a line, and the parts of some packages too; the loop knows no Ray."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "cosa_dist"
ORDER = (
    "config",
    "data",
    "model",
    "lattice",
    "assignment",
    "losses",
    "segmenter",
    "evaluation",
    "tracking",
    "training",
    "inference",
    "distributed",
    "reports",
    "benchmark",
)
# Parts (modules or subpackages) of a package, level by level: each imports from lower levels only.
LEVELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "data": (("errors",), ("catalog", "decode", "synthetic"), ("shards", "sources"), ("ingest", "reading")),
    "distributed": (
        ("cluster", "plan", "run_folder"),
        ("prepare", "worker"),
        ("labelling", "ray_worker"),
        ("scaling",),
        ("launch",),
        ("sweep",),
    ),
}
FOR_EVERYONE = ("collective", "atomic", "stopwatch")
# The loop and all below it run in a plain test: Ray, MLflow and SLURM wrap them from outside.
UNKNOWN_TO_THE_LOOP = ("ray", "mlflow")
WRAPPED = ORDER[: ORDER.index("training") + 1]
MAY_KNOW = {("tracking", "mlflow")}


def imported_names(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Every (line, absolute dotted name) that a module's source imports, wherever in it."""
    container = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = container[: len(container) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def offending_imports(source: str, module: str) -> list[str]:
    """One line for each import that `module` (dotted, packages as `.__init__`) must not have."""
    own = module.split(".")[1]
    found = []
    for line, name in imported_names(source, module):
        parts = name.split(".")
        where = f"{module}, line {line}: imports {name}"
        if parts[0] in UNKNOWN_TO_THE_LOOP and own in WRAPPED and (own, parts[0]) not in MAY_KNOW:
            found.append(f"{where}, but {parts[0]} wraps the package {own} from outside")
        if parts[0] in ("jobs", "sweeps", "tests"):
            found.append(f"{where}, but the package knows nothing of {parts[0]}")
        if parts[0] != PACKAGE or len(parts) == 1 or parts[1] in FOR_EVERYONE:
            continue
        if own not in ORDER:
            found.append(f"{where}, but {own} lies under the packages and imports none of them")
        elif parts[1] in ORDER and ORDER.index(parts[1]) > ORDER.index(own):
            found.append(f"{where}, but {parts[1]} comes after {own}")
        elif parts[1] not in (*ORDER, "__version__"):
            found.append(f"{where}, which is not in the order of packages (in this file)")
    return found


def upward_within(source: str, module: str, levels: tuple[tuple[str, ...], ...]) -> list[str]:
    """One line for each import in `module` of a part of its package that is not on a lower level."""
    package, part = module.split(".")[1:3]
    level_of = {name: level for level, names in enumerate(levels) for name in names}
    if part not in level_of:
        return [] if part == "__init__" else [f"{module}: {part} has no level (in this file)"]
    found = []
    for line, name in imported_names(source, module):
        parts = name.split(".")
        if parts[:2] != [PACKAGE, package] or len(parts) < 3 or parts[2] == part:
            continue
        if level_of.get(parts[2], len(levels)) >= level_of[part]:
            found.append(f"{module}, line {line}: imports {name}, but {parts[2]} is not below {part}")
    return found


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    return {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts): path
        for path in sorted((PROJECT / PACKAGE).rglob("*.py"))
    }


def test_no_module_imports_upwards() -> None:
    found = [line for name, path in modules().items() for line in offending_imports(path.read_text(), name)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("package", LEVELS)
def test_no_part_of_a_package_imports_upwards(package: str) -> None:
    own = {name: path for name, path in modules().items() if name.startswith(f"{PACKAGE}.{package}.")}
    found = [
        line for name, path in own.items() for line in upward_within(path.read_text(), name, LEVELS[package])
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from cosa_dist.data.ingest.report import MaskSurvey", "cosa_dist.data.shards.writer", 1),
        ("from cosa_dist.data.sources.record import Entry", "cosa_dist.data.shards.writer", 1),
        ("from .catalog import VOC", "cosa_dist.data.errors", 1),
        ("x = 1", "cosa_dist.data.elsewhere", 1),
        ("from cosa_dist.data.errors import DataError", "cosa_dist.data.shards.writer", 0),
        (
            "from .description import Split\nfrom ..decode import decode_mask",
            "cosa_dist.data.shards.split",
            0,
        ),
        ("from cosa_dist.config.schema import RunConfig", "cosa_dist.data.errors", 0),
    ],
)
def test_an_import_within_a_package_is_judged_by_levels(source: str, module: str, count: int) -> None:
    assert len(upward_within(source, module, LEVELS["data"])) == count


def test_every_package_has_its_place_in_the_order() -> None:
    packages = {name.split(".")[1] for name in modules() if name.count(".") > 1}
    assert packages <= set(ORDER), f"not in the order of packages: {sorted(packages - set(ORDER))}"


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from cosa_dist.training.loop import run", "cosa_dist.losses.energy"),
        ("import cosa_dist.training.loop", "cosa_dist.losses.energy"),
        ("from cosa_dist import training", "cosa_dist.losses.energy"),
        ("from ..training import loop", "cosa_dist.losses.energy"),
        ("from ..training import loop", "cosa_dist.losses.__init__"),
        ("def late():\n    from cosa_dist.model import network", "cosa_dist.config.schema"),
        ("from cosa_dist.config.schema import RunConfig", "cosa_dist.collective"),
        ("from cosa_dist.config.schema import RunConfig", "cosa_dist.__init__"),
        ("from cosa_dist.elsewhere import thing", "cosa_dist.benchmark.parts"),
        ("import ray.train", "cosa_dist.training.loop"),
        ("from mlflow import MlflowClient", "cosa_dist.training.loop"),
        ("from jobs.train import main", "cosa_dist.benchmark.parts"),
    ],
)
def test_an_upward_import_is_reported(source: str, module: str) -> None:
    assert len(offending_imports(source, module)) == 1


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from cosa_dist.config.schema import RunConfig", "cosa_dist.losses.energy"),
        ("from cosa_dist.collective import rank", "cosa_dist.config.schema"),
        ("from .separation import separation_loss", "cosa_dist.losses.energy"),
        ("from .energy import energy_loss", "cosa_dist.losses.__init__"),
        ("import torch\nfrom datasets import Dataset", "cosa_dist.config.schema"),
        ("import mlflow", "cosa_dist.tracking.upload"),
        ("import ray.train", "cosa_dist.distributed.launch"),
    ],
)
def test_a_downward_import_is_not_reported(source: str, module: str) -> None:
    assert offending_imports(source, module) == []
