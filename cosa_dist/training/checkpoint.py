"""A run's state to a checkpoint and back: weights are safetensors, the optimiser a pickle, the rest JSON.

The pickle is restricted to tensors and plain values: nothing in a checkpoint executes code when it is read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cosa_dist.collective import rank, world_size
from cosa_dist.config.loading import stored_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.model.backbone import backbone_of
from cosa_dist.model.network import copy_network
from cosa_dist.model.weight_file import save_pickle, save_tensors
from cosa_dist.model.weights import metadata_of, stored_colours
from cosa_dist.training.checkpoint_files import (
    CheckpointError,
    Score,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    store_checkpoint,
)
from cosa_dist.training.state import TrainState, load_network, network_names
from cosa_dist.training.window import check_weights

FAILURES_IN_A_ROW = 3  # so many checkpoints may fail one after the other before the run stops
ONLINE = "online.safetensors"
THRESHOLDS = "thresholds.safetensors"  # only there if the thresholds have a state
log = logging.getLogger(__name__)


@dataclass
class _Pending:
    """A checkpoint that the thread is writing."""

    state: TrainState
    step: int
    best_before: float
    copied: threading.Event = field(default_factory=threading.Event)
    hook: RemovableHandle = field(init=False)
    result: Future[Path] = field(init=False)


class CheckpointWriter:
    """Writes a run's checkpoints in the background, on rank 0; every rank calls `save` at the same steps.

    A thread copies the state to host memory, which is kept for the next copy, and writes from there. Weights,
    their moving average and the optimiser's moments change in or after the optimiser's step, which waits for
    the copy; all else is copied at once. So training goes on, and what is written is the state of its step.

    A checkpoint that cannot be written is a warning: those before it are whole, training goes on, and the
    next one is due soon. Only where it happens again and again, or at the end of the run, is it an error.
    What the thread meets is known at the next `save`, or where the block `with writer:` ends.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.failures = 0
        self.saved_at = time.monotonic()  # when the last one was begun, or this writer
        self.standstill = 0.0  # seconds that training has waited for checkpoints so far
        self._stored = -1  # step of the last one that is on the disk
        self._host: dict[str, Tensor] = {}
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Wait for what is being written; beside another error its failure is a warning."""
        try:
            self.finish()
        except Exception as failure:
            if not error:
                raise
            if not isinstance(failure, OSError):  # of which `finish` has warned
                log.warning("the checkpoint failed, too: %s: %s", type(failure).__name__, failure)
        finally:
            self._thread.shutdown()

    def save(self, state: TrainState, *, required: bool, score: Score | None = None) -> None:
        """Begin a checkpoint; a better `score`, of an evaluation at this step, makes it the best.

        A `required` one is on the disk on return. Raises OSError if the disk refused for the third time in a
        row, or if the checkpoint is `required`, and NonFiniteLossError for weights that are not finite.
        """
        started = time.perf_counter()
        check_weights(state.online, state.step)
        state.thresholds.align()
        if rank() == 0:
            self.finish()
            self._begin(state, score)
            if required:
                self.finish(required=True)
        self.saved_at = time.monotonic()
        self.standstill += time.perf_counter() - started

    def _begin(self, state: TrainState, score: Score | None) -> None:
        pending = _Pending(state, state.step, state.best_score)
        best = score if score is not None and score.miou > state.best_score else None
        if best is not None:
            state.best_score = best.miou
        elif self._stored == state.step:
            return
        note, files = _note_of(state), {} if self._stored == state.step else _files_of(state)
        metadata = _metadata_of(state)
        stream = None
        if files and (device := next(state.online.parameters()).device).type == "cuda":
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))

        def copy_and_store() -> Path:
            try:
                on_host = copy_to_host(files, self._host, stream)
            finally:
                pending.copied.set()
            return store_checkpoint(
                *(self.folder, note, lambda folder: _write_files(on_host, folder, metadata)),
                keep=self.keep,
                best=best,
                whole=not files,
            )

        optimizer = getattr(state.optimizer, "optimizer", state.optimizer)  # the accelerator's has no hooks
        pending.hook = optimizer.register_step_pre_hook(lambda *_: self._await_copy(pending))
        pending.result = self._thread.submit(copy_and_store)
        self._pending = pending

    def _await_copy(self, pending: _Pending) -> None:
        started = time.perf_counter()
        pending.copied.wait()
        pending.hook.remove()
        self.standstill += time.perf_counter() - started

    def finish(self, *, required: bool = False) -> None:
        """Wait until what was begun is on the disk; OSError as `save` says."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result.result()
        except OSError as error:
            # No checkpoint holds the better score, so the next one of that score is the best.
            pending.state.best_score = pending.best_before
            self.failures += 1
            log.warning(
                "the checkpoint of step %d cannot be written, those before it stay: %s", pending.step, error
            )
            if required or self.failures >= FAILURES_IN_A_ROW:
                raise
        else:
            self.failures, self._stored = 0, pending.step


def copy_to_host(content: Any, buffers: dict[str, Tensor], stream: torch.cuda.Stream | None = None) -> Any:
    """`content` (dictionaries of tensors and plain values) with its tensors copied into `buffers`.

    A buffer that is missing or of another shape is made, in pinned memory for a tensor on a GPU; there the
    copies run on `stream`, and have ended on return.
    """

    def copied(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: copied(part, f"{name}/{key}") for key, part in value.items()}
        if not isinstance(value, Tensor):
            return value
        buffer = buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            buffers[name] = buffer
        return buffer.copy_(value, non_blocking=True)

    with torch.no_grad(), torch.cuda.stream(stream):
        result = copied(content, "")
        if stream is not None:
            stream.synchronize()
    return result


def save_checkpoint(state: TrainState, folder: Path, keep: int, best: Score | None = None) -> Path:
    """Write the state below `folder` at once and return the checkpoint's path (see `store_checkpoint`)."""
    files, metadata = _files_of(state), _metadata_of(state)
    return store_checkpoint(
        folder, _note_of(state), lambda working: _write_files(files, working, metadata), keep=keep, best=best
    )


def _note_of(state: TrainState) -> dict[str, Any]:
    """The JSON part of a state."""
    return {
        "step": state.step,
        "best_score": state.best_score,
        "seconds": state.seconds,
        "config": state.config.model_dump(mode="json"),
        "workers": world_size(),
    }


def _files_of(state: TrainState) -> dict[str, Any]:
    """The tensors of a state by file; what may change before the optimiser's next step is copied."""

    def tensors(network: nn.Module, without: nn.Module | None = None) -> dict[str, Tensor]:
        # Batch norms count in the forward pass.
        buffers = dict(network.named_buffers())
        left_out = without.state_dict(keep_vars=True) if without else {}
        return {
            key: (value.clone() if key in buffers else value).detach()
            for key, value in network.state_dict(keep_vars=True).items()
            if value is not left_out.get(key)
        }

    files = {
        ONLINE: tensors(state.online),
        "assignment.safetensors": tensors(state.assignment, without=state.online),
        "optimizer.pt": state.optimizer.state_dict(),
        THRESHOLDS: {key: value.clone() for key, value in state.thresholds.state_dict().items()},
    }
    return {name: content for name, content in files.items() if content}


def _metadata_of(state: TrainState) -> dict[str, str]:
    """What the weight files tell whoever starts from them: colours that no later version takes otherwise."""
    return metadata_of({"colours": state.online.backbone.colours})


def _write_files(files: Mapping[str, Any], folder: Path, metadata: dict[str, str]) -> None:
    for name, content in files.items():
        if name.endswith(".pt"):
            save_pickle(content, folder / name)
        else:
            save_tensors(content, folder / name, metadata)


def restore(state: TrainState, path: Path, content: Mapping[str, Any] | None = None) -> None:
    """Put a checkpoint into `state`; it is verified, unless its JSON part (`content`) is given.

    Raises BrokenCheckpointError if it is damaged, CheckpointError if the configuration is another.
    """
    content = content or read_checkpoint(path)
    device = next(state.online.parameters()).device
    try:
        for network, tensors in zip((state.online, state.assignment), _tensors(path, device), strict=True):
            network.load_state_dict(tensors)
            if colours := stored_colours(path / ONLINE):
                backbone_of(network).colours = colours
        optimizer = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
        state.optimizer.load_state_dict(optimizer)
        thresholds = load_file(path / THRESHOLDS) if THRESHOLDS in content["files"] else {}
        state.thresholds.load_state_dict(thresholds)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit this configuration: {reason}") from None
    state.step, state.best_score = content["step"], content["best_score"]
    state.seconds = content["seconds"]
    workers = content.get("workers", world_size())
    if state.config.data.reading == "streaming" and workers != world_size():
        log.warning(
            f"{path.name} was written with {workers} workers, there are {world_size()} now: streaming deals "
            "the samples of this epoch out anew (data.reading mapped would not)"
        )


def _tensors(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of both networks; what they share is stored with the online network alone."""
    online, own = (load_file(path / name, device=str(device)) for name in (ONLINE, "assignment.safetensors"))
    return online, online | own


def restore_newest(state: TrainState, folder: Path) -> Path | None:
    """Restore the newest whole checkpoint below `folder` (see `newest_checkpoint`); None if there is none."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    restore(state, *newest)
    return newest[0]


def load_networks(run: Path, which: str, device: torch.device) -> tuple[RunConfig, dict[str, nn.Module]]:
    """Load a run's configuration and both networks of a checkpoint, by name and in evaluation mode."""
    path = find_checkpoint(run, which)
    config = stored_config(read_checkpoint(path)["config"], str(path))
    online, assignment = _tensors(path, device)
    network = load_network(config, online, device, stored_colours(path / ONLINE))
    average = copy_network(network)
    average.load_state_dict(assignment)
    return config, dict(zip(network_names(config), (network, average), strict=True))
