"""The leaderboard with seeds grouped, in the terminal and as Markdown: mean and range, not single runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cosa_dist.reports.leaderboard import Table
from cosa_dist.reports.leaderboard_views import duration, markdown_line
from cosa_dist.reports.seed_groups import SeedGroup, all_groups

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS: dict[str, Callable[[SeedGroup], str]] = {
    "recipe": lambda group: group.rows[0].recipe,
    "backbone": lambda group: group.rows[0].backbone,
    "steps": lambda group: group.rows[0].steps,
    "mIoU (mean)": lambda group: f"{group.mean:.1f}",
    "range": lambda group: f"{group.spread[0]:.1f} to {group.spread[1]:.1f}",
    "runs": lambda group: str(len(group.rows)),
    "seeds": lambda group: group.seeds,
    "time (mean)": lambda group: duration(group.seconds),
    "commits": lambda group: ", ".join(sorted({row.commit for row in group.rows if row.commit})),
    "options": lambda group: group.rows[0].digest,
}


def print_groups(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print one table per data set, split and protocol that has runs."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    for table, groups in all_groups(tables):
        shown = RichTable(title=table.title, title_justify="left")
        for name in COLUMNS:
            shown.add_column(name)
        for group in groups:
            shown.add_row(*(Text(cell(group)) for cell in COLUMNS.values()))
        console.print(shown)


def groups_to_markdown(tables: Sequence[Table]) -> str:
    """The same as Markdown."""
    parts = []
    for table, groups in all_groups(tables):
        lines = [markdown_line(list(COLUMNS)), markdown_line(["---"] * len(COLUMNS))]
        lines += [markdown_line([cell(group) for cell in COLUMNS.values()]) for group in groups]
        parts.append("\n".join([f"### {table.title}", "", *lines]))
    return "\n\n".join(parts) + "\n"
