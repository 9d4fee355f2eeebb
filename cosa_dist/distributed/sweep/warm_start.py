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

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.interruption import RunStoppedError
from cosa_dist.distributed.launch import launch
from cosa_dist.distributed.prepare import PreparedRun, prepare_run, reopen
from cosa_dist.distributed.run_folder import RunFolder
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
    """Raise `ConfigError` if there is no loss warm-up, or a swept option acts in it."""
    if base.kind != "cosa" or not base.losses.warmup_steps:
        raise ConfigError("--warm-start needs a loss warm-up: losses.warmup_steps is 0, or kind is control")
    for key in keys:
        if key in USED_IN_WARMUP or not key.startswith(FREE):
            raise ConfigError(
                f"--warm-start: {key} is varied, but the loss warm-up depends on it; sweep without it"
            )


def warm_up(base: RunConfig, resources: Mapping[str, float]) -> RunFolder:
    """Train a sweep's shared loss warm-up, or go on with it, and return its run folder."""
    steps = base.losses.warmup_steps
    changes = {
        "name": f"{base.name}-warmup",
        "training": {"log_every": steps},
        "evaluation": {"every": 0},
    }
    config = build_config(merge(base.model_dump(), changes))
    folder = RunFolder.of(config)
    if (folder.checkpoints / checkpoint_name(steps)).is_dir():
        return folder
    log.info("shared loss warm-up: %d steps in %s", steps, folder.path)
    run = reopen(folder, {}) if folder.path.is_dir() else prepare_run(config)
    # The workers save and stop at their first line of log, which is the end of the loss warm-up.
    folder.stop_file.touch()
    try:
        launch(run, resources)
    except RunStoppedError:
        return folder
    raise CheckpointError(f"the shared loss warm-up in {folder.path} went on beyond step {steps}")


def fork(source: RunFolder, run: PreparedRun) -> None:
    """Give a fresh run the shared warm-up's checkpoint under its own configuration."""
    steps = run.config.losses.warmup_steps
    origin = source.checkpoints / checkpoint_name(steps)
    content = read_checkpoint(origin)
    kept = {key: value for key, value in content.items() if key not in ("files", "digest", "format")}
    kept["config"] = run.config.model_dump(mode="json")
    with new_checkpoint(run.folder.checkpoints, steps, kept) as working:
        for name in CARRIED:
            shutil.copyfile(origin / name, working / name)
