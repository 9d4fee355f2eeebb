"""The training loop: step after step, with a line of log, checkpoints and evaluations between.

The loop knows a tracker's interface and an accelerator, but neither Ray, MLflow nor SLURM: they wrap it,
so it runs in a plain process too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cosa_dist.assignment.threshold import threshold_values
from cosa_dist.collective import barrier, rank, sum_over_ranks, world_size
from cosa_dist.data.loader import Batch
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.checkpoint import save_checkpoint
from cosa_dist.training.state import TrainState
from cosa_dist.training.step import training_step

log = logging.getLogger(__name__)
Evaluate = Callable[[TrainState, bool], dict[str, EvalReport]]
Report = Callable[[dict[str, float]], None]


class NonFiniteLossError(RuntimeError):
    """A loss term became infinite or not a number; training stops, the last checkpoint stays."""


@dataclass
class Surroundings:
    """What the loop calls besides the method: where to save, whom to tell, how to evaluate."""

    accelerator: Accelerator
    tracker: Tracker
    folder: Path
    """the run's own folder; checkpoints lie below it"""
    evaluate: Evaluate
    """evaluates the state; the flag says whether it is the last evaluation"""
    report: Report = field(default=lambda metrics: None)
    """called by every rank with the metrics of an evaluation"""


@dataclass
class Window:
    """Loss sums and time since the last line of log."""

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's terms; they stay on the device."""
        self.steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def means(self) -> dict[str, float]:
        """Means over the window's steps and over all ranks."""
        stacked = torch.stack([value.float() for value in self.sums.values()])
        means = sum_over_ranks(stacked) / (world_size() * max(1, self.steps))
        return dict(zip(self.sums, means.tolist(), strict=True))


def check_finite(means: dict[str, float], step: int, batches: Sequence[Batch]) -> None:
    """Refuse to go on with a loss that is not finite.

    Raises:
        NonFiniteLossError: naming the step, the terms and the samples of this rank.
    """
    broken = [name for name, value in means.items() if not abs(value) < float("inf")]
    if broken:
        ids = ", ".join(sample for batch in batches for sample in batch.ids)
        raise NonFiniteLossError(
            f"step {step}: {', '.join(broken)} not finite; samples of rank {rank()}: {ids}; "
            "the last checkpoint is kept"
        )


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
        NonFiniteLossError: a loss term is not finite.
    """
    settings = state.config.training
    device = around.accelerator.device
    reports: dict[str, EvalReport] = {}
    network.train()
    window = Window()
    for batches in steps:
        terms, _ = training_step(state, network, [batch.to(device) for batch in batches], around.accelerator)
        window.add(terms)
        last = state.step == settings.steps
        every = state.config.evaluation.every
        evaluating = last or (every > 0 and state.step % every == 0)
        saving = evaluating or state.step % settings.checkpoint_every == 0
        if saving or state.step % settings.log_every == 0:
            window = _log_window(state, window, batches, around)
        if evaluating:
            reports = _evaluate(state, around, last)
            window = Window()
        elif saving:
            _save(state, around)
    if not reports:
        reports = _evaluate(state, around, True)
    return reports


def _log_window(state: TrainState, window: Window, batches: Sequence[Batch], around: Surroundings) -> Window:
    """Write one line of log and one point of each curve; return a fresh window."""
    settings = state.config.training
    means = window.means()
    seconds = time.perf_counter() - window.started
    state.seconds += seconds
    check_finite(means, state.step, batches)
    images_per_second = window.steps * settings.global_batch_size / seconds
    if rank() == 0:
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics["train/images_per_second"] = images_per_second
        metrics["train/learning_rate"] = state.optimizer.param_groups[0]["lr"]
        thresholds = threshold_values(state.thresholds.current())
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
    return Window()


def _save(state: TrainState, around: Surroundings, best: bool = False) -> None:
    if rank() == 0:
        keep = state.config.training.keep_checkpoints
        save_checkpoint(state, around.folder / "checkpoints", keep, best)
    barrier()


def _evaluate(state: TrainState, around: Surroundings, last: bool) -> dict[str, EvalReport]:
    """Evaluate both networks, note the better one's score, save, and tell tracker and launcher."""
    started = time.perf_counter()
    reports = around.evaluate(state, last)
    prefix = "final" if last else "val"
    metrics: dict[str, float] = {}
    for report in reports.values():
        metrics.update({f"{prefix}/{key}": value for key, value in report.metrics().items()})
    score = max(report.miou("unfiltered") or 0.0 for report in reports.values())
    best = score > state.best_score
    state.best_score = max(score, state.best_score)
    metrics[f"{prefix}/miou_unfiltered"] = score
    metrics[f"{prefix}/evaluation_seconds"] = time.perf_counter() - started
    if last:
        metrics["final/training_seconds"] = state.seconds
        total = state.step * state.config.training.global_batch_size
        metrics["final/images_per_second"] = total / state.seconds if state.seconds else 0.0
    if rank() == 0:
        around.tracker.log_metrics(metrics, state.step)
        around.tracker.flush()
        log.info("step %d  unfiltered mIoU %.2f (best %.2f)", state.step, score, state.best_score)
    _save(state, around, best)
    around.report({"step": float(state.step), "miou_unfiltered": score, **metrics})
    return reports
