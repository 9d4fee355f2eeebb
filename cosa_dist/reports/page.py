"""Pages as single files: templates filled with escaped values."""

from __future__ import annotations

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
