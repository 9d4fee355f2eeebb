"""The training loop: step after step, with a line of log, checkpoints and evaluations between.

The loop knows a tracker's interface and an accelerator, but neither Ray, MLflow nor SLURM: they wrap it,
so it runs in a plain process too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from cosa_dist.collective import rank, sum_over_ranks, world_size
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.samples import Batch
from cosa_dist.evaluation.report import EvalReport, better_report
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.checkpoint import CheckpointWriter
from cosa_dist.training.checkpoint_files import Score
from cosa_dist.training.flops import image_operations, peak_rate
from cosa_dist.training.optimizer import learning_rate_factor
from cosa_dist.training.state import TrainState, classes_of
from cosa_dist.training.step import training_step
from cosa_dist.training.window import LossWindow, timed

log = logging.getLogger(__name__)
Reports = dict[str, EvalReport]
OnStep = Callable[[TrainState, Sequence[Batch]], None]


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop and has left a checkpoint to go on from."""


@dataclass
class TrainingContext:
    """What the loop calls besides the method: where to save, whom to tell, how to evaluate."""

    accelerator: Accelerator
    tracker: Tracker
    folder: Path  # the run's own folder; checkpoints lie below it
    evaluate: Callable[[TrainState, bool], tuple[Reports, Reports]]
    """evaluates the state; the flag says whether it is the last evaluation. Gives the reports on all of its
    images, and on those that every evaluation of the run has, by which checkpoints are compared"""
    report: Callable[[dict[str, float]], None] = lambda metrics: None
    """called by every rank with the metrics of an evaluation"""
    stop_requested: Callable[[], bool] = lambda: False
    """asked on every rank at every line of log: whether to save and stop there; all do what one says"""
    on_step: OnStep = lambda state, batches: None
    """called by every rank after each optimiser step, before anything of it is logged or saved"""


class Due(NamedTuple):
    """What comes after a step."""

    last: bool
    evaluate: bool
    save: bool
    log: bool


def due_after(step: int, config: RunConfig) -> Due:
    """What the configuration asks for after `step` finished steps; an evaluation saves, a save logs."""
    training, every = config.training, config.evaluation.every
    last = step == training.steps
    evaluate = last or (every > 0 and step % every == 0)
    save = evaluate or step % training.checkpoint_every == 0
    return Due(last, evaluate, save, log=save or step % training.log_every == 0)


def run_training(
    state: TrainState, network: nn.Module, steps: Iterable[Sequence[Batch]], context: TrainingContext
) -> Reports:
    """Train until `training.steps`; return the last evaluation's reports.

    The state is changed in place; `network` is the online network as the accelerator prepared it; `steps`
    gives this rank's micro-batches per optimiser step, from `state.step` on. Raises TrainingStoppedError as
    `context.stop_requested`, NonFiniteLossError, and OSError if no checkpoint could be written for long.
    """
    reports: Reports = {}
    if rank() == 0:
        for step in (state.step + 1, state.config.training.steps):
            _operations(state, step)  # takes seconds, which are not those of the steps
    network.train()
    window = LossWindow()
    with CheckpointWriter(context.folder / "checkpoints", state.config.training.keep_checkpoints) as writer:
        for waited, batches in timed(steps):
            on_device = [batch.to(context.accelerator.device) for batch in batches]
            window.add(training_step(state, network, on_device, context.accelerator), batches, waited)
            context.on_step(state, batches)
            due = due_after(state.step, state.config)
            if not due.log:
                continue
            means, seconds = window.means(state.step), time.perf_counter() - window.started
            state.seconds += seconds
            stop, save, share = _agree(state, context, writer, window.waited / seconds)
            if rank() == 0:
                means["loader_wait_share"] = share
                _log_window(state, means, seconds / window.steps, context)
            stop = stop and not due.last
            window = LossWindow()
            if due.last:
                # The last evaluation may take longer than what is left of a time limit.
                writer.save(state, required=False)
            if due.evaluate:
                reports = _evaluate(state, context, writer, due.last, required=due.last or stop)
                window = LossWindow()
            elif due.save or save or stop:
                writer.save(state, required=stop)
            if stop:
                raise TrainingStoppedError(f"stopped as asked after step {state.step}, which is saved")
        return reports or _evaluate(state, context, writer, last=True, required=True)


def _agree(
    state: TrainState, context: TrainingContext, writer: CheckpointWriter, waiting: float
) -> tuple[bool, bool, float]:
    """Whether to stop, whether to save, and the mean share of time spent `waiting` for the loader.

    The answers are the same on all ranks, and none decides alone: they stop where one was asked to, and save
    by the clock of rank 0.
    """
    minutes = state.config.training.checkpoint_minutes
    due = rank() == 0 and 0 < 60 * minutes <= time.monotonic() - writer.saved_at
    own = torch.tensor([context.stop_requested(), due, waiting], device=context.accelerator.device)
    stops, dues, share = sum_over_ranks(own).tolist()
    return stops > 0, dues > 0, share / world_size()


def _log_window(
    state: TrainState, means: Mapping[str, float], seconds_per_step: float, context: TrainingContext
) -> None:
    """Write one line of log and one point of each curve."""
    settings = state.config.training
    images_per_second = settings.global_batch_size / seconds_per_step
    thresholds = state.thresholds.current().values()
    values = {**means, "images_per_second": images_per_second}
    factor = learning_rate_factor(state.step - 1, settings.steps, state.config.optimizer)
    values["learning_rate"] = state.config.optimizer.learning_rate * factor
    values |= _use_of_the_device(state, images_per_second / world_size(), context.accelerator.device)
    if state.config.kind != "segmenter":
        values |= thresholds
    context.tracker.log_metrics({f"train/{name}": value for name, value in values.items()}, state.step)
    for notice in state.thresholds.notices():
        log.warning("step %d: %s", state.step, notice)
    parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if value)
    if state.thresholds.learns:
        parts += "  " + " ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    left = (settings.steps - state.step) * seconds_per_step
    log.info(
        f"step {state.step}/{settings.steps}  {parts}  {images_per_second:.1f} images/s  {int(left)} s left"
    )


def _operations(state: TrainState, step: int) -> int:
    """Operations of one image in the phase of a step; they are counted at the first call for each phase."""
    co_training = state.config.kind == "cosa" and step > state.config.losses.warmup_steps
    return image_operations(state.config, classes_of(state.online.state_dict()), co_training=co_training)


def _use_of_the_device(state: TrainState, images_per_second: float, device: torch.device) -> dict[str, float]:
    """This worker's rate of the model's operations, 10^12 a second, its MFU, and peaks of a GPU's memory.

    Operations are those of the last step's phase; an MFU needs the GPU's data sheet, peaks are since the last
    line of log.
    """
    found: dict[str, float] = {}
    if operations := _operations(state, state.step):
        found["model_tflops"] = images_per_second * operations / 1e12
        if peak := peak_rate(state.config, device):
            found["mfu"] = images_per_second * operations / peak
    if device.type == "cuda":
        found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        found["gpu_memory_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _evaluate(
    state: TrainState, context: TrainingContext, writer: CheckpointWriter, last: bool, *, required: bool
) -> Reports:
    """Evaluate both networks, save with the better one's score, and tell tracker and launcher."""
    started = time.perf_counter()
    reports, compared = context.evaluate(state, last)
    prefix = "final" if last else "val"
    metrics = _metrics(reports, prefix)
    if compared is not reports:
        metrics |= _metrics(compared, "val")
    metrics[f"{prefix}/evaluation_seconds"] = time.perf_counter() - started
    if last:
        images = state.step * state.config.training.global_batch_size
        metrics["final/training_seconds"] = state.seconds
        metrics["final/images_per_second"] = images / state.seconds if state.seconds else 0.0
    better = better_report(compared)
    # None where no validation image has a mask, as with pictures and tags of one's own.
    score = None if better is None else Score(better.miou() or 0.0, better.network, better.images)
    if rank() == 0:
        if last:
            context.tracker.set_tags(next(iter(reports.values())).tags())
        context.tracker.log_metrics(metrics, state.step)
        context.tracker.flush()
        if score is None:
            reason = "; ".join(sorted({report.without_score() for report in reports.values()}))
            log.warning("step %d  there are no scores: on the validation images %s", state.step, reason)
        else:
            best, where = max(score.miou, state.best_score), ""
            if compared is not reports:
                where = f" on {score.images} images, {metrics['final/miou_unfiltered']:.2f} on all"
            log.info("step %d  unfiltered mIoU %.2f%s (best %.2f)", state.step, score.miou, where, best)
    writer.save(state, required=required, score=score)
    headline = metrics.get(f"{prefix}/miou_unfiltered", 0.0)
    context.report({"step": float(state.step), "miou_unfiltered": headline, **metrics})
    return reports


def _metrics(reports: Mapping[str, EvalReport], prefix: str) -> dict[str, float]:
    """All scores of an evaluation, and the better network's."""
    metrics = {f"{prefix}/{key}": value for one in reports.values() for key, value in one.metrics().items()}
    better = better_report(reports)
    if better is not None:
        metrics[f"{prefix}/miou_unfiltered"] = better.miou() or 0.0
    return metrics
