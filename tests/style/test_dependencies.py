"""What the code imports is what pyproject.toml declares, and every declared package has a tested version."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("cosa_dist", "jobs", "sweeps", "slurm")
OWN = {*CODE, "tests"}
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def plain(requirement: str) -> str:
    """A distribution's name in its normal form, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def imported() -> set[str]:
    """Names of the top-level packages that the code imports, wherever in it."""
    found: set[str] = set()
    for path in (path for folder in CODE for path in (PROJECT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - OWN - set(sys.stdlib_module_names)


def declared() -> set[str]:
    """Distributions that an installation of the code brings, the extra `export` included."""
    return {plain(each) for each in [*DECLARED["dependencies"], *DECLARED["optional-dependencies"]["export"]]}


def test_every_import_is_declared_and_everything_declared_is_imported() -> None:
    distributions = packages_distributions()
    providers = {name: {plain(each) for each in distributions.get(name, [name])} for name in imported()}
    missing = {name: sorted(options) for name, options in providers.items() if not options & declared()}
    assert missing == {}, f"imported and not declared: {missing}"
    idle = declared() - set().union(*providers.values()) - {"onnx"}  # onnxscript's exporter needs it
    assert idle == set(), f"declared and not imported: {sorted(idle)}"


def test_every_declared_package_has_a_tested_version() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    tested = {plain(line) for line in lines if line and not line.startswith("#")}
    extras = [each for group in DECLARED["optional-dependencies"].values() for each in group]
    assert {plain(each) for each in [*DECLARED["dependencies"], *extras]} - tested - {"cosa-dist"} == set()
