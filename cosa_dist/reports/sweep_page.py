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
from cosa_dist.distributed.sweep.trial import Trial
from cosa_dist.reports.leaderboard_views import Cells, duration
from cosa_dist.reports.page import render_page

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

ENOUGH_FOR_IMPORTANCE = 4
log = logging.getLogger(__name__)


def trial_cells(plan: SweepPlan, trials: Sequence[Trial]) -> Cells:
    """The table of trials, in the order given."""
    header = ["trial", "mIoU", *plan.keys, "step", "time", "worker seconds", "status"]
    rows = [
        [
            trial.name,
            "" if trial.miou is None else f"{trial.miou:.2f}",
            *(_shown(trial.options.get(key, "")) for key in plan.keys),
            str(max(trial.history, default="")),
            duration(trial.seconds),
            f"{trial.workers * trial.seconds:.0f}",
            f"{trial.status}: {trial.reason}" if trial.reason else trial.status,
        ]
        for trial in trials
    ]
    return Cells(f"{plan.name}: unfiltered mIoU", header, rows)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_outcome(plan: SweepPlan, result: SweepResult) -> list[Path]:
    """Write `trials.csv` and `sweep.html` into the sweep's folder and return their paths."""
    cells = trial_cells(plan, result.trials)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([cells.header, *cells.rows])
    table_path, page_path = result.folder / "trials.csv", result.folder / "sweep.html"
    atomic_write(table_path, text.getvalue())
    html = render_page(
        "sweep.html.j2",
        title=f"Sweep {plan.name}",
        plan=plan,
        header=cells.header,
        rows=cells.rows,
        best=result.best_config.name,
        # The first plot brings plotly's code along.
        figures=[
            (title, figure.to_html(full_html=False, include_plotlyjs=number == 0, default_height="480px"))
            for number, (title, figure) in enumerate(figures(plan, result.trials))
        ],
    )
    atomic_write(page_path, html)
    return [table_path, page_path]


def figures(plan: SweepPlan, trials: Sequence[Trial]) -> list[tuple[str, go.Figure]]:
    """Title and plot of what can be said of these trials."""
    import optuna.visualization as plots

    evaluated = [trial for trial in trials if trial.miou is not None]
    study = rebuilt_study(plan, evaluated)
    varied = [key for key in plan.keys if len({str(trial.options.get(key)) for trial in evaluated}) > 1]
    made: list[tuple[str, go.Figure]] = []
    if evaluated:
        made.append(("Curves", plots.plot_intermediate_values(study)))
    if varied:
        made.append(("Parallel coordinates", plots.plot_parallel_coordinate(study, params=varied)))
        if len(evaluated) >= ENOUGH_FOR_IMPORTANCE:
            try:
                made.append(("Importance of the options", plots.plot_param_importances(study, params=varied)))
            except (RuntimeError, ValueError) as error:
                log.warning("importance of the options: %s", error)
    return made


def rebuilt_study(plan: SweepPlan, evaluated: Sequence[Trial]) -> optuna.Study:
    """An Optuna study of trials that were evaluated; a pruned one counts with its last evaluation."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", study_name=plan.name)
    distributions: dict[str, BaseDistribution] = {}
    for key in plan.keys:
        values = [trial.options.get(key) for trial in evaluated]
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) > 0:
            distributions[key] = FloatDistribution(min(numbers), max(numbers))
        else:
            distributions[key] = CategoricalDistribution(sorted({str(value) for value in values}))
    for trial in evaluated:
        params = {}
        for key, distribution in distributions.items():
            value: Any = trial.options.get(key)
            params[key] = float(value) if isinstance(distribution, FloatDistribution) else str(value)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE,
                value=trial.miou,
                params=params,
                distributions=distributions,
                intermediate_values=trial.history,
            )
        )
    return study
