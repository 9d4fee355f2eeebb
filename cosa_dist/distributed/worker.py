"""What one worker of a run does: data, networks, accelerator, tracker, then the loop, reports and pictures.

`run_worker` knows torch.distributed but not Ray, so tests run it in a plain process; Ray Train calls it
through `ray_worker.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn

from cosa_dist.atomic import atomic_write
from cosa_dist.collective import any_rank, rank, sum_over_ranks, world_size
from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.catalog import voc_colour_map
from cosa_dist.data.reading.loader import EvaluationLoader, TrainingLoader, open_reading
from cosa_dist.data.shards.split import MappedSplit, Split
from cosa_dist.distributed.plan import largest_micro_batch, loader_processes
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask
from cosa_dist.evaluation.evaluator import Evaluator, classification_control, has_cams, with_crf
from cosa_dist.evaluation.pictures import Labeller, save_pictures
from cosa_dist.evaluation.report import EvalReport, as_text, better_report
from cosa_dist.tracking.tracker import NullTracker, Tracker
from cosa_dist.training.checkpoint import restore, restore_newest
from cosa_dist.training.checkpoint_files import BrokenCheckpointError, checkpoint_name
from cosa_dist.training.loop import OnStep, TrainingContext, TrainingStoppedError, run_training
from cosa_dist.training.state import (
    TrainState,
    build_state,
    compile_networks,
    make_accelerator,
    resolve_precision,
    set_arithmetic,
    wrap_online,
)
from cosa_dist.training.window import NonFiniteLossError

NON_RETRYABLE_ERRORS = (
    *(ValueError, TypeError, LookupError, FileNotFoundError),
    *(NonFiniteLossError, torch.OutOfMemoryError),
)
Reports = dict[str, EvalReport]
BATCHES_AHEAD = 2
"""batches that a loader process keeps ready, PyTorch's default"""
BYTES_OF_A_PIXEL = 7
"""of a training picture on its way to the training process: weak and strong view, and a mask"""
log = logging.getLogger(__name__)


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Let what a run can do without fail with one line of log; to be entered by all ranks that take part."""
    try:
        yield
    except Exception as error:
        if rank() == 0:
            log.warning("no %s: %s", what, " ".join(str(error).split())[:300] or type(error).__name__)


class Evaluation:
    """Evaluates a state on the validation split."""

    def __init__(self, config: RunConfig, val: Split, accelerator: Accelerator, loaders: int) -> None:
        self.config = config
        self.val = val
        self.loaders = loaders
        self.evaluator = Evaluator.of_run(
            config,
            val.class_names,
            device=accelerator.device,
            precision=accelerator.autocast,
            masks_needed=False,
        )

    def samples(self, split: Split, limit: int, start: int = 0) -> EvaluationLoader:
        """This rank's part of a split."""
        return EvaluationLoader(split, rank(), world_size(), limit or None, self.loaders, start=start)

    def __call__(self, state: TrainState, last: bool) -> tuple[Reports, Reports]:
        """Return the reports of both networks on all images, and on the first `evaluation.limit`."""
        plain = replace(self.evaluator, config=with_crf(self.config.evaluation, None))
        if self.config.evaluation.crf.enabled:
            with warn_on_failure("scores after the dense CRF (evaluation.crf)"):
                return self._evaluated(state, last, self.evaluator)
        return self._evaluated(state, last, plain)

    def _evaluated(self, state: TrainState, last: bool, evaluator: Evaluator) -> tuple[Reports, Reports]:
        limit = self.config.evaluation.limit
        parts = [self.samples(self.val, limit)]
        if last and 0 < limit < self.val.size:
            parts.append(self.samples(self.val, 0, start=limit))
        reports = evaluator.evaluate_parts(state.networks, parts)
        if last:
            reports[-1] = {name: report.with_intervals() for name, report in reports[-1].items()}
        return reports[-1], reports[0]

    def control(self, state: TrainState, train: Split) -> dict[str, float]:
        """CAM quality with predicted labels, the background level chosen on training images.

        Raises `ValueError` where it cannot be measured.
        """
        if not has_cams(state.online):
            raise ValueError("a segmenter has no CAMs")
        for split in (train, self.val):
            if isinstance(split, MappedSplit) and not split.mask_count:
                raise ValueError(f"no image of split '{split.name}' has a mask")
        metrics = {}
        for name in ("online", "assignment"):
            result = classification_control(
                getattr(state, name),
                self.samples(train, 0),
                self.samples(self.val, 0),
                self.evaluator,
            )
            metrics[f"final/{name}/cam_control_predicted_labels"] = result.validation_miou
            metrics[f"final/{name}/cam_control_background"] = result.background
        return metrics


def check_shared_memory(loaders: int, images: int, side: int, workers: int, place: str = "/dev/shm") -> None:
    """Refuse to start where the batches of the loader processes do not fit into shared memory.

    A full one ends these processes with a bus error in the middle of a run. Each of the node's `workers` has
    `loaders` processes, which keep batches of so many `images` of a `side` ready. Raises ValueError.
    """
    if not loaders or not os.path.isdir(place):
        return
    needed = workers * loaders * BATCHES_AHEAD * images * BYTES_OF_A_PIXEL * side**2
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{place} has {free / 2**20:.0f} MiB free on this node, its loader processes keep batches of "
            f"{needed / 2**20:.0f} MiB there: give a container more (docker run --shm-size="
            f"{-(-needed * 2 // 2**30)}g, or --ipc=host), or lower data.loader_workers (0: none)"
        )


def training_loader(config: RunConfig, split: Split, first_step: int, task: WorkerTask) -> TrainingLoader:
    """This rank's batches from `first_step` to the run's end."""
    settings = config.training
    micro = largest_micro_batch(settings.global_batch_size, world_size(), task.micro_batch_size)
    loaders = loader_processes(config.data, task.cpus, task.use_gpu)
    check_shared_memory(loaders, micro, config.data.crop_size, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return TrainingLoader(
        split,
        crop_size=config.data.crop_size,
        scale_range=config.data.scale_range,
        seed=config.seed,
        global_batch_size=settings.global_batch_size,
        rank=rank(),
        world_size=world_size(),
        micro_batch_size=micro,
        start_step=first_step,
        stop_step=settings.steps,
        num_workers=loaders,
        pin_memory=task.use_gpu,
        shuffle_window=config.data.shuffle_window,
        masks=config.kind == "segmenter",
    )


def restore_on_all_ranks(state: TrainState, folder: Path, device: torch.device) -> str:
    """Put the newest whole checkpoint below `folder` into every rank's state; rank 0 decides which.

    Returns its name, empty if there is none. Raises `CheckpointError` if none of those there is usable, and
    `RuntimeError` (worth a retry) if this node does not see (yet) what rank 0 has read.
    """
    found = restore_newest(state, folder) is not None if rank() == 0 else False
    # Steps are counted from one here: zero means that there is nothing.
    step = int(sum_over_ranks(torch.tensor(state.step + 1 if found else 0, device=device))) - 1
    if step < 0:
        return ""
    name = checkpoint_name(step)
    if rank() != 0:
        try:
            restore(state, folder / name)
        except BrokenCheckpointError as error:
            raise RuntimeError(f"rank {rank()} does not see the checkpoint of rank 0: {error}") from None
    return name


def common_precision(config: RunConfig, task: WorkerTask) -> str:
    """The run's number format: `auto` is bf16 only where every rank's GPU has it."""
    setting = config.training.precision
    if setting == "auto" and any_rank(resolve_precision(setting, "cuda" if task.use_gpu else "cpu") == "no"):
        return "fp32"
    return setting


def prepare_state(
    config: RunConfig, classes: int, folder: RunFolder, accelerator: Accelerator
) -> tuple[TrainState, nn.Module]:
    """The fresh or restored state, and the online network as the accelerator wraps it."""
    # A checkpoint replaces the weights that training starts from: they need not be there any more.
    resumed = any_rank(folder.has_checkpoint)
    state = build_state(config, classes, accelerator.device, load_weights=not resumed)
    restored = restore_on_all_ranks(state, folder.checkpoints, accelerator.device)
    if resumed and not restored:  # some node has seen what rank 0 does not see
        state = build_state(config, classes, accelerator.device)
    if rank() == 0:
        start = f"continuing from {restored}" if restored else "starting"
        log.info("%s on %d worker(s), %s", start, world_size(), accelerator.device)
    if accelerator.device.type == "cuda" and world_size() > 1:
        # In place: batch norms of all GPUs share their statistics; the parameters stay the optimiser's own.
        # timm's conversion, as PyTorch's would lose the activation that timm keeps inside a norm.
        convert_sync_batchnorm(state.online)
    if config.training.compile:
        compile_networks(state)
    network = wrap_online(state, accelerator)
    return state, network


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
    for name, report in reports.items():
        report.write(folder.report_file(name), folder.counts_file(name))
    results = folder.path / "results.txt"
    with warn_on_failure("tables of the reports"):
        atomic_write(results, as_text(list(reports.values())))
        for name, report in reports.items():
            tracker.log_artifact(folder.report_file(name))
            tracker.log_table(report.per_class_rows(), f"per_class_{name}")
        tracker.log_artifact(results)


def draw_pictures(
    state: TrainState,
    reports: Mapping[str, EvalReport],
    val: Split,
    folder: RunFolder,
    tracker: Tracker,
    accelerator: Accelerator,
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
        device=accelerator.device,
        precision=accelerator.autocast,
        limit=config.evaluation.pictures,
    )
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


def run_worker(
    task: WorkerTask,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_step: OnStep = lambda state, batches: None,
) -> Reports:
    """Train this worker's part of the run, from the newest checkpoint of its folder if there is one.

    Every rank calls `report` with the metrics of each evaluation, and `on_step` after each step, before
    anything of it is logged or saved. Returns the last evaluation's reports, the same on every rank.
    """
    config = build_config(task.config, "run")
    folder = RunFolder(Path(task.folder))
    loaders = loader_processes(config.data, task.cpus, task.use_gpu)
    # The loader processes beside a GPU have most of its CPUs.
    torch.set_num_threads(max(1, task.cpus - (loaders if task.use_gpu else 0)))
    set_arithmetic(config.training.matmul_precision, config.training.deterministic)
    precision, half = common_precision(config, task), config.distributed.bf16_gradients
    accelerator = make_accelerator(precision, world_size(), not task.use_gpu, bf16_gradients=half)
    train = open_reading(config.data, config.data.train_split)
    val = open_reading(config.data, config.data.val_split)
    state, network = prepare_state(config, len(train.class_names), folder, accelerator)
    # Rank 0 alone records anything.
    tracker = Tracker(folder.path, task.tracking_uri, task.run_id) if rank() == 0 else NullTracker()
    if folder.config_file.is_file():
        tracker.log_artifact(folder.config_file)
    evaluation = Evaluation(config, val, accelerator, loaders)
    stop = folder.stop_file.exists
    context = TrainingContext(accelerator, tracker, folder.path, evaluation, report, stop, on_step)
    try:
        loader = training_loader(config, train, state.step, task)
        reports = run_training(state, network, loader, context)
        if rank() == 0:
            write_reports(reports, folder, tracker)
        # The scores are safe; what follows is optional, and no failure of it is the run's.
        if config.evaluation.cam_control:
            with warn_on_failure("CAM control (evaluation.cam_control)"):
                tracker.log_metrics(evaluation.control(state, train), state.step)
        if rank() == 0 and config.evaluation.pictures:
            with warn_on_failure("pictures"):
                draw_pictures(state, reports, val, folder, tracker, accelerator)
    except BaseException as error:
        killed = isinstance(error, TrainingStoppedError | KeyboardInterrupt) or folder.pruned
        tracker.close("KILLED" if killed else "FAILED")
        raise
    with warn_on_failure("status in the run folder"):
        tracker.close("FINISHED")
    return reports
