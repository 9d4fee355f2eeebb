"""The outcome of a sweep: table in the terminal and as CSV, and a page with plots.

Importance of the options, parallel coordinates and curves are Optuna's own plots of a study that is rebuilt
from the trials, whichever way they were chosen.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosa_dist.atomic import atomic_write
from cosa_dist.distributed.sweep.plan import SweepPlan
from cosa_dist.distributed.sweep.run import SweepResult
from cosa_dist.distributed.sweep.trials import Trial
from cosa_dist.reports.leaderboard_views import duration
from cosa_dist.reports.page import render_page

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

ENOUGH_FOR_IMPORTANCE = 4
log = logging.getLogger(__name__)


def table(plan: SweepPlan, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of trials, in the order given."""
    header = ["trial", "mIoU", *plan.keys, "step", "time", "worker seconds", "status"]
    rows = [
        [
            trial.name,
            "" if trial.miou is None else f"{trial.miou:.2f}",
            *(_shown(trial.options.get(key, "")) for key in plan.keys),
            str(trial.history[-1].step) if trial.history else "",
            duration(trial.seconds),
            f"{trial.workers * trial.seconds:.0f}",
            f"{trial.status}: {trial.reason}" if trial.reason else trial.status,
        ]
        for trial in trials
    ]
    return header, rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_trials(plan: SweepPlan, trials: Sequence[Trial]) -> None:
    """Print the table of trials."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    header, rows = table(plan, trials)
    shown = Table(title=f"{plan.name}: unfiltered mIoU", title_justify="left")
    for name in header:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)


def write_outcome(plan: SweepPlan, result: SweepResult) -> list[Path]:
    """Write `trials.csv` and `sweep.html` into the sweep's folder and return their paths."""
    header, rows = table(plan, result.trials)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    table_path, page_path = result.folder / "trials.csv", result.folder / "sweep.html"
    atomic_write(table_path, text.getvalue())
    html = render_page(
        "sweep.html.j2",
        title=f"Sweep {plan.name}",
        plan=plan,
        header=header,
        rows=rows,
        best=result.best_config.name,
        figures=_embedded(figures(plan, result.trials)),
    )
    atomic_write(page_path, html)
    return [table_path, page_path]


def figures(plan: SweepPlan, trials: Sequence[Trial]) -> list[tuple[str, go.Figure]]:
    """Title and plot of what can be said of these trials."""
    import optuna.visualization as plots

    study = rebuilt_study(plan, trials)
    varied = [
        key for key in plan.keys if len({str(t.options.get(key)) for t in trials if t.miou is not None}) > 1
    ]
    made: list[tuple[str, go.Figure]] = []
    if any(trial.history for trial in trials):
        made.append(("Curves", plots.plot_intermediate_values(study)))
    if varied:
        made.append(("Parallel coordinates", plots.plot_parallel_coordinate(study, params=varied)))
        if len(study.get_trials(states=_complete())) >= ENOUGH_FOR_IMPORTANCE:
            try:
                made.append(("Importance of the options", plots.plot_param_importances(study, params=varied)))
            except (RuntimeError, ValueError) as error:
                log.warning("importance of the options: %s", error)
    return made


def rebuilt_study(plan: SweepPlan, trials: Sequence[Trial]) -> optuna.Study:
    """An Optuna study of the trials that were evaluated; a stopped one counts with its last evaluation."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", study_name=plan.name)
    choices = {key: [trial.options.get(key) for trial in trials] for key in plan.keys}
    for trial in trials:
        if trial.miou is None:
            continue
        distributions = {key: _distribution(values) for key, values in choices.items()}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE,
                value=trial.miou,
                params={key: _plain(trial.options.get(key), choices[key]) for key in plan.keys},
                distributions=distributions,
                intermediate_values={entry.step: entry.miou for entry in trial.history},
            )
        )
    return study


def _complete() -> tuple[optuna.trial.TrialState, ...]:
    import optuna

    return (optuna.trial.TrialState.COMPLETE,)


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plain(value: Any, values: Sequence[Any]) -> Any:
    return float(value) if _numeric(values) else str(value)


def _distribution(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    """Range of the numbers that occur, or the list of what occurs."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if _numeric(values):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _embedded(made: Sequence[tuple[str, go.Figure]]) -> list[tuple[str, str]]:
    """Title and HTML of each plot; the first brings plotly's code along."""
    return [
        (title, figure.to_html(full_html=False, include_plotlyjs=number == 0, default_height="480px"))
        for number, (title, figure) in enumerate(made)
    ]
