"""The pages for users say what the code says: messages, options, recipes and jobs that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cosa_dist.config.loading import recipe_names
from cosa_dist.config.options import known_keys

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "docs" / f"{name}.md" for name in ("tutorial", "troubleshooting", "evaluation", "recipes")]


def messages() -> list[str]:
    """First cells of the tables of docs/troubleshooting.md that quote a message."""
    rows = (PROJECT / "docs" / "troubleshooting.md").read_text().splitlines()
    cells = [re.match(r"\| `([^`]+)` \|", row) for row in rows]
    return [cell.group(1) for cell in cells if cell]


def source() -> str:
    """All code, with strings over several lines joined."""
    files = [path for folder in ("cosa_dist", "jobs") for path in (PROJECT / folder).rglob("*.py")]
    files += (PROJECT / "slurm").glob("*.sh")
    text = "\n".join(path.read_text() for path in files)
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


def test_there_are_at_least_twenty_messages():
    assert len(messages()) >= 20


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_one_of_the_code(message):
    code = source()
    # What is wrong and what to do about it may come from two places.
    for part in re.split("…|[:;] ", message):
        if len(part.strip(" ;:,.?")) > 2:
            assert part.strip(" ") in code, part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_jobs_and_links_exist(page):
    text = page.read_text()
    sections = {key.split(".")[0] for key in known_keys() if "." in key}
    for key in re.findall(r"(?<![\w/.])-{0,2}([a-z_]+(?:\.[a-z_]+)+)", text):
        if key.split(".")[0] in sections and not key.endswith((".py", ".md", ".yaml", ".html")):
            known = known_keys()
            assert key in known or any(name.startswith(f"{key}.") for name in known), key
    for job in re.findall(r"jobs/(\w+)\.py", text):
        assert (PROJECT / "jobs" / f"{job}.py").is_file(), job
    for target in re.findall(r"\]\(([\w./]+\.md)\)", text):
        assert (page.parent / target).is_file(), target


def test_every_recipe_is_on_the_page_of_recipes():
    text = (PROJECT / "docs" / "recipes.md").read_text()
    assert [name for name in recipe_names() if f"`{name}`" not in text] == []
