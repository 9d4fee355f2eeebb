"""What a finished run leaves behind: reports, per-class tables and sample pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.loader import EvaluationLoader
from cosa_dist.data.shards import Split
from cosa_dist.evaluation.labeller import Labeller
from cosa_dist.evaluation.pictures import save_pictures
from cosa_dist.evaluation.report import EvalReport, as_text
from cosa_dist.evaluation.settings import evaluation_settings
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.state import TrainState
from cosa_dist.training.step import assignment_settings


def better_network(reports: dict[str, EvalReport]) -> str:
    """Name of the network with the higher unfiltered mIoU."""
    return max(reports, key=lambda name: reports[name].miou("unfiltered") or 0.0)


def labeller(state: TrainState) -> Labeller:
    """The assignment network of a state, as it labels at this step."""
    settings = state.config.assignment
    return Labeller(
        network=state.assignment,
        scales=settings.scales,
        stride=state.online.backbone.stride,
        thresholds=state.thresholds.current(),
        settings=assignment_settings(state),
        aux_cam_last_scale_only=settings.aux_cam_last_scale_only,
    )


def final_artifacts(
    config: RunConfig,
    state: TrainState,
    reports: dict[str, EvalReport],
    val: Split,
    folder: Path,
    tracker: Tracker,
    device: torch.device,
) -> None:
    """Write reports, per-class tables and pictures to the run folder and the tracker."""
    (folder / "results.txt").write_text(as_text(list(reports.values())), encoding="utf-8")
    tracker.log_artifact(folder / "results.txt")
    for name, report in reports.items():
        path = folder / f"report_{name}.json"
        path.write_text(report.to_json(), encoding="utf-8")
        tracker.log_artifact(path)
        tracker.log_table(report.per_class_rows(), f"per_class_{name}")
    if not config.evaluation.pictures:
        return
    chosen = config.evaluation
    pictures = save_pictures(
        state.networks[better_network(reports)],
        EvaluationLoader(val, 0, 1, chosen.pictures, 0),
        folder / "pictures",
        class_names=val.class_names,
        palette=voc_colour_map(),
        labeller=labeller(state) if config.kind == "cosa" else None,
        settings=evaluation_settings(config),
        device=device,
        limit=chosen.pictures,
    )
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
