"""Pages as single files: templates filled with escaped values, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; everything that came from data is escaped."""
    environment = Environment(
        loader=PackageLoader("cosa_dist.reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, html: str) -> None:
    """Write a page under a temporary name and rename it, so that no half of it is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(html, encoding="utf-8")
    part.replace(path)
