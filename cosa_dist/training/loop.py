"""The training loop: step after step, with a line of log, checkpoints and evaluations between.

The loop knows a tracker's interface and an accelerator, but neither Ray, MLflow nor SLURM: they wrap it,
so it runs in a plain process too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cosa_dist.assignment.threshold import threshold_values
from cosa_dist.collective import rank, sum_over_ranks
from cosa_dist.data.reading.loader import Batch
from cosa_dist.evaluation.report import EvalReport, better_report
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.checkpoint import Score
from cosa_dist.training.saving import CheckpointWriter
from cosa_dist.training.state import TrainState
from cosa_dist.training.step import training_step
from cosa_dist.training.supervised_step import supervised_step
from cosa_dist.training.window import LossWindow, NonFiniteLossError

__all__ = ["NonFiniteLossError", "Surroundings", "TrainingStoppedError", "run_training"]

log = logging.getLogger(__name__)
Evaluate = Callable[[TrainState, bool], tuple[dict[str, EvalReport], dict[str, EvalReport]]]
Report = Callable[[dict[str, float]], None]


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop and has left a checkpoint to go on from."""


@dataclass
class Surroundings:
    """What the loop calls besides the method: where to save, whom to tell, how to evaluate."""

    accelerator: Accelerator
    tracker: Tracker
    folder: Path
    """the run's own folder; checkpoints lie below it"""
    evaluate: Evaluate
    """evaluates the state; the flag says whether it is the last evaluation. Gives the reports on all of its
    images, and on those that every evaluation of the run has, by which checkpoints are compared"""
    report: Report = field(default=lambda metrics: None)
    """called by every rank with the metrics of an evaluation"""
    stop_asked: Callable[[], bool] = field(default=lambda: False)
    """asked on rank 0 at every line of log: whether to save and stop there"""


def run_training(
    state: TrainState,
    network: nn.Module,
    steps: Iterable[Sequence[Batch]],
    around: Surroundings,
) -> dict[str, EvalReport]:
    """Train until `training.steps`; return the last evaluation's reports.

    Args:
        state: fresh or restored; changed in place.
        network: the online network as the accelerator prepared it.
        steps: per optimiser step this rank's micro-batches, from `state.step` on.
        around: tracker, folder, evaluation.

    Raises:
        NonFiniteLossError: a loss term or a weight is not finite.
        TrainingStoppedError: `around.stop_asked`; the state of this step is saved.
        OSError: no checkpoint could be written for long, or the last one could not.
    """
    settings = state.config.training
    device = around.accelerator.device
    writer = CheckpointWriter(around.folder / "checkpoints", settings.keep_checkpoints)
    reports: dict[str, EvalReport] = {}
    network.train()
    window = LossWindow()
    for batches in steps:
        terms = _take_step(state, network, [batch.to(device) for batch in batches], around.accelerator)
        window.add(terms, batches)
        last = state.step == settings.steps
        every = state.config.evaluation.every
        evaluating = last or (every > 0 and state.step % every == 0)
        saving = evaluating or state.step % settings.checkpoint_every == 0
        stopping = False
        if saving or state.step % settings.log_every == 0:
            _log_window(state, window, around)
            stopping = _stop_asked(around) and not last
            window = LossWindow()
        if last:
            # The last evaluation may take longer than what is left of a time limit.
            writer.save(state, must=False)
        if evaluating:
            reports = _evaluate(state, around, writer, last)
            window = LossWindow()
        elif saving or stopping:
            writer.save(state, must=stopping)
        if stopping:
            raise TrainingStoppedError(f"stopped as asked after step {state.step}, which is saved")
    if not reports:
        reports = _evaluate(state, around, writer, True)
    return reports


def _take_step(
    state: TrainState, network: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> dict[str, Tensor]:
    """One optimiser step of the run's kind; its loss terms."""
    if state.config.kind == "segmenter":
        return supervised_step(state, network, batches, accelerator)
    return training_step(state, network, batches, accelerator)[0]


def _stop_asked(around: Surroundings) -> bool:
    """Whether rank 0 was asked to stop, the same answer on every rank."""
    asked = float(rank() == 0 and around.stop_asked())
    return bool(sum_over_ranks(torch.tensor(asked, device=around.accelerator.device)) > 0)


def _log_window(state: TrainState, window: LossWindow, around: Surroundings) -> None:
    """Write one line of log and one point of each curve."""
    settings = state.config.training
    means = window.means(state.step)
    seconds = time.perf_counter() - window.started
    state.seconds += seconds
    if rank() != 0:
        return
    images_per_second = window.steps * settings.global_batch_size / seconds
    metrics = {f"train/{name}": value for name, value in means.items()}
    metrics["train/images_per_second"] = images_per_second
    metrics["train/learning_rate"] = state.optimizer.param_groups[0]["lr"]
    thresholds = threshold_values(state.thresholds.current())
    if state.config.kind != "segmenter":
        metrics.update({f"train/{name}": value for name, value in thresholds.items()})
    around.tracker.log_metrics(metrics, state.step)
    for notice in state.thresholds.notices():
        log.warning("step %d: %s", state.step, notice)
    left = (settings.steps - state.step) * seconds / window.steps
    parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if value)
    if state.thresholds.learns:
        parts += "  " + " ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    log.info(
        "step %d/%d  %s  %.1f images/s  %d s left",
        state.step,
        settings.steps,
        parts,
        images_per_second,
        left,
    )


def _evaluate(
    state: TrainState, around: Surroundings, writer: CheckpointWriter, last: bool
) -> dict[str, EvalReport]:
    """Evaluate both networks, note the better one's score, save, and tell tracker and launcher."""
    started = time.perf_counter()
    reports, compared = around.evaluate(state, last)
    prefix = "final" if last else "val"
    metrics = _metrics(reports, prefix)
    if compared is not reports:
        metrics.update(_metrics(compared, "val"))
    metrics[f"{prefix}/evaluation_seconds"] = time.perf_counter() - started
    if last:
        metrics["final/training_seconds"] = state.seconds
        total = state.step * state.config.training.global_batch_size
        metrics["final/images_per_second"] = total / state.seconds if state.seconds else 0.0
    better = better_report(compared)
    # None where no validation image has a mask, as with pictures and tags of one's own.
    score = None if better is None else Score(better.miou() or 0.0, better.network, better.images)
    if rank() == 0:
        if last:
            around.tracker.set_tags(next(iter(reports.values())).tags())
        around.tracker.log_metrics(metrics, state.step)
        around.tracker.flush()
        if score is None:
            reason = "; ".join(sorted({report.without_score() for report in reports.values()}))
            log.warning("step %d  there are no scores: on the validation images %s", state.step, reason)
        else:
            best, where = max(score.miou, state.best_score), ""
            if compared is not reports:
                where = f" on {score.images} images, {metrics['final/miou_unfiltered']:.2f} on all"
            log.info("step %d  unfiltered mIoU %.2f%s (best %.2f)", state.step, score.miou, where, best)
    writer.save(state, must=last, score=score)
    headline = metrics.get(f"{prefix}/miou_unfiltered", 0.0)
    around.report({"step": float(state.step), "miou_unfiltered": headline, **metrics})
    return reports


def _metrics(reports: Mapping[str, EvalReport], prefix: str) -> dict[str, float]:
    """All scores of an evaluation, and the better network's."""
    metrics = {f"{prefix}/{key}": value for one in reports.values() for key, value in one.metrics().items()}
    better = better_report(reports)
    if better is not None:
        metrics[f"{prefix}/miou_unfiltered"] = better.miou() or 0.0
    return metrics
