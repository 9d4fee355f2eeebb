"""Markdown tables of results: a line holds the runs that differ in their seed only.

What all lines share (data set, evaluation, options) stands under the table, what differs in columns; commits
and seeds are always listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from cosa_dist.atomic import atomic_write
from cosa_dist.config.ablation import Combination
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.plan import SweepPlan
from cosa_dist.distributed.sweep.run import SweepResult
from cosa_dist.reports.leaderboard import grouped
from cosa_dist.reports.leaderboard_views import duration, markdown_table
from cosa_dist.reports.results import ResultRow, measured, read_result, recipe_values, rows_to_text

Baseline = tuple[str, Callable[[ResultRow], bool]]
"""a baseline's name, and what tells its rows"""
NOT_RECORDED = "not recorded"
ROWS_FILE = "ablation.jsonl"
MEASURES = {
    "unfiltered": "unfiltered",
    "unfiltered, CRF": "unfiltered_crf",
    "CAM (true_labels)": "cam_true_labels",
    "auxiliary CAM (true_labels)": "aux_cam_true_labels",
}
"""measurement by title of its column"""


def write_ablation(plan: SweepPlan, result: SweepResult, context_class: str = "") -> tuple[Path, str]:
    """Write the rows of an ablation's finished trials into the sweep's folder; return path and table."""
    runs = RunFolder.of(plan.config).path.parent
    rows = [read_result(runs / trial.name) for trial in result.trials if trial.status == "finished"]
    path = result.folder / ROWS_FILE
    atomic_write(path, rows_to_text(rows))
    return path, as_markdown(rows, with_context(context_class), plan.ablation)


def with_context(name: str) -> dict[str, str]:
    """The usual measurements, and those of a coexisting class."""
    context = {f"context as {name}": f"context {name}", f"IoU {name}": f"iou {name}"} if name else {}
    return {**MEASURES, **context}


def lines_of(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """Rows by line of a table, in the order of their first appearance.

    Runs of one line differ in seed and commit only. Where a commit brings a seed that the line has already,
    the next line begins, so that no line counts a seed again.
    """
    lines: list[list[ResultRow]] = []
    for group in grouped(rows, _experiment).values():
        lines.append([])
        for of_commit in grouped(group, lambda row: row.commit).values():
            if {row.seed for row in of_commit} & {row.seed for row in lines[-1]}:
                lines.append([])
            lines[-1] += of_commit
    return lines


def _experiment(row: ResultRow) -> tuple[Any, ...]:
    options = json.dumps(row.options, sort_keys=True)
    return row.recipe, options, row.combination, row.note, row.dataset, row.split, row.images, row.evaluation


def combination_of(row: ResultRow, combinations: Sequence[Combination]) -> tuple[str, dict[str, Any]]:
    """Name of the combination that a row is of, and its options beyond it, as few as possible; or no name."""
    if row.combination or not combinations:
        return row.combination, row.options
    values = recipe_values(row.recipe) | row.options
    found = [("", row.options)]
    for one in combinations:
        wanted = recipe_values(row.recipe, json.dumps(one.options))
        if all(values[key] == wanted[key] for key in one.options):
            beyond = {key: value for key, value in row.options.items() if key not in one.options}
            found.append((one.name, beyond))
    return min(found[1:] or found, key=lambda match: len(match[1]))


def as_markdown(
    rows: Sequence[ResultRow],
    measures: Mapping[str, str],
    combinations: Sequence[Combination] = (),
    *,
    beside: Baseline | None = None,
    compared: Sequence[str] = ("unfiltered",),
    best: Sequence[str] = (),
) -> str:
    """The table of some rows, and the line under it that says what they share.

    `measures` are measurements by title (`measured`); one that no row has is left out. Figures are the mean
    over a line's runs, with smallest to largest in brackets. `combinations` name the lines, in their order.
    `beside` is a baseline's name and what tells its rows: the titles in `compared` get a column of
    differences to it, seed by seed. `best` are measurements that order the lines, the best mean first.

    Raises:
        ValueError: rows of one split's different images or classes.
    """
    if not rows:
        return "No run is stored yet."
    for (dataset, split), group in grouped(rows, lambda row: (row.dataset, row.split)).items():
        if len({row.image_set for row in group} - {""}) > 1:
            raise ValueError(f"rows of different images or classes, all called {dataset} {split}")
    named = _named_lines(rows, combinations, best)
    lines = [line for _, _, line in named]
    columns, shared = _facts(lines, [options for _, options, _ in named])
    if combinations:
        columns = {"combination": [name.replace("_", " ") or "another" for name, _, _ in named], **columns}
    elif not columns:
        columns["recipe"] = [shared.pop(0)] * len(lines)
    columns |= _figures(lines, measures, beside, compared)
    columns["seeds"] = [seeds_of(line) for line in lines]
    columns["commits"] = [commits_of(line) for line in lines]

    source = ["mIoU in per cent of the better network"]
    if len(rows) > len(lines):
        source[0] += ", mean and in brackets smallest to largest"
    if any(row.interval for row in rows):
        source.append("95 %: mean bounds of the runs' intervals over images")
    if beside:
        source.append(f"difference: to {beside[0]}, seed by seed")
    table = markdown_table(list(columns), list(zip(*columns.values(), strict=True)))
    return f"{table}\n\n{'; '.join([*source, *shared])}."


def _figures(
    lines: Sequence[Sequence[ResultRow]],
    measures: Mapping[str, str],
    beside: Baseline | None,
    compared: Sequence[str],
) -> dict[str, list[str]]:
    """Columns of figures that some line has, each with its differences where it is compared, and of times."""
    columns = {}
    for title, measure in measures.items():
        values = [[measured(row, measure) for row in line] for line in lines]
        if not any(value is not None for line in values for value in line):
            continue
        columns[title] = [spread(line) for line in values]
        if title in compared and any(measure in row.interval for line in lines for row in line):
            columns[f"{title}, 95 %"] = [_interval(line, measure) for line in lines]
        if beside and title in compared:
            base = [line for line in lines if beside[1](line[0])]
            columns[f"{title}, difference"] = [_difference(line, base, measure) for line in lines]
    times = [_times(line) for line in lines]
    return {**columns, "training, evaluation": times} if {*times} - {"-"} else columns


def _named_lines(
    rows: Sequence[ResultRow], combinations: Sequence[Combination], best: Sequence[str]
) -> list[tuple[str, dict[str, Any], list[ResultRow]]]:
    """The lines in their order, with the name of the combination that they are of and the other options."""
    names = [combination.name for combination in combinations]
    named = [(*combination_of(line[0], combinations), line) for line in lines_of(rows)]
    named.sort(key=lambda one: names.index(one[0]) if one[0] in names else len(names))
    for measure in reversed(best):
        scores = {id(line): mean(measured(row, measure) or 0.0 for row in line) for _, _, line in named}
        named.sort(key=lambda one: -scores[id(one[2])])
    return named


def _facts(
    lines: Sequence[Sequence[ResultRow]], options: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[str]], list[str]]:
    """What tells lines apart, as columns, and what they share; `options` are those to name of each line."""
    first, *others = options
    common = {
        key: first[key] for key in first if all(key in one and one[key] == first[key] for one in others)
    }
    own = [{key: value for key, value in one.items() if key not in common} for one in options]
    differs = [_listed([*_words(one), line[0].note]) for one, line in zip(own, lines, strict=True)]
    facts = {
        "recipe": [f"`{line[0].recipe}`" for line in lines],
        "differs in": [cell or "nothing" for cell in differs],
        "images": [data_text(line[0]) for line in lines],
        "evaluation": [line[0].evaluation for line in lines],
    }
    differing = {title: cells for title, cells in facts.items() if len({*cells} - {""}) > 1}
    shared = [max(cells) for title, cells in facts.items() if title not in differing]
    machines = dict.fromkeys(row.machine for line in lines for row in line)
    named = [machine or "machine not recorded" for machine in machines] if any(machines) else []
    shared += [*_words(common), " or ".join(named)]
    return differing, [text for text in shared if text not in ("", "nothing")]


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options in words, e.g. `threshold.low 0.3`, without the name of their section."""
    return [f"`{key.partition('.')[2] or key} {value}`" for key, value in options.items()]


def data_text(row: ResultRow) -> str:
    """What a row was evaluated on, e.g. `VOC-mini val (249 images)`."""
    return f"{row.dataset} {row.split}" + (f" ({row.images:,} images)" if row.images else "")


def spread(values: Sequence[float | None], form: str = ".1f") -> str:
    """Mean, with smallest to largest in brackets where there are several; `-` without a value."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):{form}}"
    return text if len(known) == 1 else f"{text} ({min(known):{form}} to {max(known):{form}})"


def _difference(line: Sequence[ResultRow], baselines: Sequence[Sequence[ResultRow]], measure: str) -> str:
    """Differences to the baseline's runs of the same seeds; of its lines, to that with the most of them."""
    if line in baselines or not baselines:
        return ""

    def common(base: Sequence[ResultRow]) -> tuple[int, int]:
        seeds, commits = (
            {getattr(row, name) for row in line} & {getattr(row, name) for row in base}
            for name in ("seed", "commit")
        )
        return len(seeds), len(commits)

    values = {row.seed: measured(row, measure) for row in max(reversed(baselines), key=common)}
    pairs = [(measured(row, measure), values.get(row.seed)) for row in line if row.seed is not None]
    return spread([own - other for own, other in pairs if own is not None and other is not None], "+.1f")


def _interval(line: Sequence[ResultRow], measure: str) -> str:
    """The mean bounds of a line's runs; `-` if one of them is not known."""
    both = [row.interval[measure] for row in line if measure in row.interval]
    return (
        " to ".join(f"{mean(bound):.1f}" for bound in zip(*both, strict=True))
        if len(both) == len(line)
        else "-"
    )


def _times(rows: Sequence[ResultRow]) -> str:
    """Mean times of training and evaluation, of the rows that tell them apart."""
    timed = [row for row in rows if row.seconds and row.evaluation_seconds]
    both = [[getattr(row, name) for row in timed] for name in ("seconds", "evaluation_seconds")]
    return ", ".join(duration(mean(seconds)) for seconds in both) if timed else "-"


def seeds_of(line: Sequence[ResultRow]) -> str:
    """The seeds of a line's runs, `?` for one that is not known."""
    return " ".join(sorted("?" if row.seed is None else str(row.seed) for row in line))


def commits_of(line: Sequence[ResultRow]) -> str:
    """The commits of a line's runs, seven digits of each."""
    parts = (row.commit.partition("-dirty") for row in line)
    return _listed(
        (known[:7] + dirty if len(known) == 40 else known) or NOT_RECORDED for known, dirty, _ in parts
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, words)))
