"""What a finished run leaves behind: reports, per-class tables and sample pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from cosa_dist.atomic import atomic_write
from cosa_dist.collective import rank
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.reading.loader import EvaluationLoader
from cosa_dist.data.shards.description import Split
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.evaluation.pictures import Labeller, save_pictures
from cosa_dist.evaluation.report import EvalReport, as_text, better_report
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.state import TrainState

log = logging.getLogger(__name__)


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Let what a run can do without fail with one line of log; to be entered by all ranks that take part."""
    try:
        yield
    except Exception as error:
        if rank() == 0:
            log.warning("no %s: %s", what, " ".join(str(error).split())[:300] or type(error).__name__)


def labeller(state: TrainState) -> Labeller:
    """The assignment network of a state, as it labels at this step."""
    return Labeller(
        network=state.assignment,
        stride=state.online.backbone.stride,
        thresholds=state.thresholds.current(),
        config=state.config.assignment,
    )


def write_reports(reports: Mapping[str, EvalReport], folder: RunFolder, tracker: Tracker) -> None:
    """Write the final reports to the run folder; tables and copies for the tracker are optional."""
    paths = {name: folder.path / f"report_{name}.json" for name in reports}
    for name, path in paths.items():
        atomic_write(path, reports[name].to_json())
    results = folder.path / "results.txt"
    with warn_on_failure("tables of the reports"):
        atomic_write(results, as_text(list(reports.values())))
        for name, report in reports.items():
            tracker.log_artifact(paths[name])
            tracker.log_table(report.per_class_rows(), f"per_class_{name}")
        tracker.log_artifact(results)


def draw_pictures(
    state: TrainState,
    reports: Mapping[str, EvalReport],
    val: Split,
    folder: RunFolder,
    tracker: Tracker,
    device: torch.device,
) -> None:
    """Draw validation images with the better network's predictions, and with their labels in training."""
    config = state.config
    better = better_report(reports)
    pictures = save_pictures(
        state.networks[better.network] if better else state.online,
        EvaluationLoader(val, 0, 1, config.evaluation.pictures, 0),
        folder.pictures,
        class_names=val.class_names,
        palette=voc_colour_map(),
        labeller=labeller(state) if config.kind == "cosa" else None,
        config=config.evaluation,
        aux_cam_last_scale_only=config.assignment.aux_cam_last_scale_only,
        device=device,
        limit=config.evaluation.pictures,
    )
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
