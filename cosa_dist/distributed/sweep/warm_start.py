"""One loss warm-up for all trials of a sweep.

While only the classification losses count, nothing depends on the weights of the others, so trials that
differ in those alone would train the same network again and again up to the end of that phase. The shared
run stops there with a checkpoint, and a trial's run starts from a copy of it under the trial's own
configuration; on the CPU its result is bit for bit that of a run that has trained its own warm-up.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.interruption import STOP, RunStoppedError
from cosa_dist.distributed.launch import launch
from cosa_dist.distributed.prepare import PreparedRun, prepare_run, reopen
from cosa_dist.distributed.run_folder import run_folder
from cosa_dist.training.checkpoint_files import (
    CheckpointError,
    checkpoint_name,
    new_checkpoint,
    read_checkpoint,
)

# What the loss warm-up depends on although its section is free to vary.
USED_IN_WARMUP = ("losses.warmup_steps", "losses.zero_gradients_in_warmup", "assignment.momentum")
FREE = ("losses.", "assignment.", "evaluation.")
CARRIED = ("online.safetensors", "assignment.safetensors", "optimizer.pt")
"""a threshold search starts fresh in the fork: it has seen nothing before co-training"""
log = logging.getLogger(__name__)


def check_warm_start(base: RunConfig, keys: Iterable[str]) -> None:
    """Refuse a shared warm-up that would not be the trials' own.

    Raises:
        ConfigError: there is no loss warm-up, or a swept option acts in it.
    """
    if base.kind != "cosa" or not base.losses.warmup_steps:
        raise ConfigError("--warm-start needs a loss warm-up: losses.warmup_steps is 0, or kind is control")
    for key in keys:
        if key in USED_IN_WARMUP or not key.startswith(FREE):
            raise ConfigError(
                f"--warm-start: {key} is varied, but the loss warm-up depends on it; sweep without it"
            )


def warm_up(base: RunConfig, resources: Mapping[str, float]) -> Path:
    """Train a sweep's shared loss warm-up, or go on with it, and return its run folder.

    Raises:
        RunFailedError: the run failed.
    """
    steps = base.losses.warmup_steps
    config = base.model_copy(
        update={
            "name": f"{base.name}-warmup",
            "training": base.training.model_copy(update={"log_every": steps}),
            "evaluation": base.evaluation.model_copy(update={"every": 0}),
        }
    )
    folder = run_folder(config)
    if (folder / "checkpoints" / checkpoint_name(steps)).is_dir():
        return folder
    log.info("shared loss warm-up: %d steps in %s", steps, folder)
    run = reopen(config.name, config.output, {}) if folder.is_dir() else prepare_run(config)
    # The workers save and stop at their first line of log, which is the end of the loss warm-up.
    (folder / STOP).touch()
    try:
        launch(run, dict(resources))
    except RunStoppedError:
        return folder
    raise CheckpointError(f"the shared loss warm-up in {folder} went on beyond step {steps}")


def fork(source: Path, run: PreparedRun) -> Path:
    """Give a fresh run the shared warm-up's checkpoint under its own configuration.

    Args:
        source: run folder of the shared warm-up.
        run: fresh; its loss warm-up ends at the checkpoint's step.

    Returns:
        The new checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint at that step.
    """
    steps = run.config.losses.warmup_steps
    origin = source / "checkpoints" / checkpoint_name(steps)
    content = read_checkpoint(origin)
    folder = run.folder / "checkpoints"
    kept = {key: value for key, value in content.items() if key not in ("files", "digest", "format")}
    with new_checkpoint(folder, steps, kept | {"config": run.config.model_dump(mode="json")}) as working:
        for name in CARRIED:
            shutil.copyfile(origin / name, working / name)
    return folder / origin.name
