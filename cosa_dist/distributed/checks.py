"""What is checked in the driver before anything is made, so that a mistake costs seconds and not an hour.

Settings, shards, network, weights, output folder and tracking store; of a multi-stage run, the configurations
of its stages as well. Each check raises one line (ConfigError, FileNotFoundError, ValueError).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, is_recipe_file, load_config, merge
from cosa_dist.config.method import names_a_file
from cosa_dist.config.paths import absolute
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import check_reading
from cosa_dist.data.shards.description import Split
from cosa_dist.data.shards.split import open_split
from cosa_dist.distributed.plan import check_batch_early
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.model.weights import parse_weight_source
from cosa_dist.tracking.store import MEMORY, SQLITE, check_store

LONGEST_NAME = 200
"""bytes; what is made beside a run bears a longer one, and file systems end at 255"""
ONE, MASKS, TWO = STAGES = ("stage-one", "pseudo-masks", "stage-two")
INHERITED_DATA = ("shards", "reading", "cache", "train_split", "val_split", "label")


def resolve(config: RunConfig) -> RunConfig:
    """Give a loaded configuration a name if it has none, and make every local path absolute.

    Raises `ConfigError` if the name cannot be that of a folder, or for a path that `absolute` refuses.
    """
    kind = "" if config.kind == "cosa" or is_staged(config) else f"-{config.kind}"
    name = config.name or f"{config.recipe}{kind}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "/" in name or name.startswith(".") or not (name.isprintable() and len(name.encode()) <= LONGEST_NAME):
        raise ConfigError(
            f"--name {name[:80]!r}: a run's folder bears its name: leave out '/', a dot at its beginning and "
            f"control characters, and keep it below {LONGEST_NAME} letters"
        )
    weights, uri, first = config.model.weights, config.tracking.uri, config.stage_one.recipe
    if names_a_file(weights):
        weights = absolute(weights, "model.weights")
    if is_recipe_file(first):
        first = absolute(first, "stage_one.recipe")
    if uri.startswith(SQLITE) and uri != SQLITE + MEMORY:
        uri = SQLITE + absolute(uri.removeprefix(SQLITE), "tracking.uri", True)
    changes = {
        "name": name,
        "output": absolute(config.output, "output", True),
        "data": {
            "shards": absolute(config.data.shards, "data.shards", True),
            "cache": absolute(config.data.cache, "data.cache"),
        },
        "model": {"weights": weights},
        "tracking": {"uri": uri},
        "stage_one": {"recipe": first, "run": absolute(config.stage_one.run, "stage_one.run")},
    }
    return build_config(merge(config.model_dump(), changes))


def check_inputs(config: RunConfig) -> tuple[Split, Split]:
    """Check all that a run is made of; return its training and its validation split."""
    check_batch_early(config)
    parse_weight_source(config.model.weights)
    train = check_reading(config.data, config.data.train_split)
    val = check_reading(config.data, config.data.val_split)
    if train.info.class_names != val.info.class_names:
        raise ConfigError(
            f"{config.data.shards}: splits {config.data.train_split} and {config.data.val_split} "
            "have different classes"
        )
    if config.kind == "segmenter":
        _check_masks(config, train)
    _check_network(config, len(train.info.class_names))
    return train, val


def check_places(config: RunConfig) -> None:
    """Check that the run's folder and its tracking run can be made."""
    check_writable(RunFolder.of(config).path)
    if config.tracking.enabled:
        check_store(config.tracking.uri or None, Path(config.output))


def check_writable(folder: Path) -> None:
    """Raise `ConfigError` if a folder cannot be written to, or not be made where it is missing."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot write to {there}")


def _check_network(config: RunConfig, classes: int) -> None:
    # Only here: networks take seconds to import, and a process that only names this module needs none.
    from cosa_dist.training.state import check_network

    check_network(config, classes)


def _check_masks(config: RunConfig, train: Split) -> None:
    """Refuse to train a segmenter on other masks than asked for, or on records without any."""
    where = f"{config.data.shards}, split {config.data.train_split}"
    if config.supervision == "truth" and train.pseudo_masks is not None:
        raise ConfigError(f"supervision truth: {where} holds pseudo-masks; give shards with true masks")
    if config.supervision == "pseudo_masks" and train.pseudo_masks is None:
        raise ConfigError(
            f"supervision pseudo_masks: {where} holds no pseudo-masks; make them with jobs/pseudo_masks.py, "
            "name a first stage (stage_one.recipe), or set supervision to truth"
        )
    if config.data.reading == "mapped":
        split = open_split(config.data.shards, config.data.train_split, config.data.cache)
        if split.mask_count < split.size:
            raise ConfigError(
                f"{where}: {split.size - split.mask_count} of {split.size} records have no mask; a segmenter "
                "needs a mask of each"
            )


def is_staged(config: RunConfig) -> bool:
    """Whether the configuration asks for a first stage before its own training."""
    first = config.stage_one
    segmenter = config.kind == "segmenter" and config.supervision == "pseudo_masks"
    return segmenter and bool(first.recipe or first.run)


def stage_one_config(config: RunConfig) -> RunConfig:
    """The first stage's configuration: its recipe and options, on the data and the place of the whole run.

    Raises `ConfigError` if the recipe or the options are wrong, or it is no CoSA run.
    """
    first = load_config(config.stage_one.recipe, None, config.stage_one.options, "stage_one.options")
    if first.kind != "cosa":
        raise ConfigError(f"stage_one.recipe {config.stage_one.recipe}: a first stage is a CoSA run")
    shared = {
        "name": f"{config.name}-{ONE}",
        "seed": config.seed,
        "output": config.output,
        "tracking": config.tracking.model_dump(),
        "distributed": config.distributed.model_dump(),
        "data": {name: getattr(config.data, name) for name in INHERITED_DATA},
    }
    return resolve(build_config(merge(first.model_dump(), shared), f"recipe {config.stage_one.recipe}"))


def stage_two_config(config: RunConfig, shards: Path) -> RunConfig:
    """The second stage's configuration: the run's own, on the labelled shards."""
    own = {
        "name": f"{config.name}-{TWO}",
        "data": {"shards": str(shards)},
        "stage_one": {"recipe": "", "options": {}, "run": ""},
    }
    return build_config(merge(config.model_dump(), own), "second stage")


def check_stages(config: RunConfig) -> Split:
    """Check a first stage's inputs, or the run that stands for it, and the second stage's network."""
    check_batch_early(config)
    val = check_reading(config.data, config.data.val_split)
    if config.stage_one.run:
        from cosa_dist.inference.trained import choose

        trained_config(Path(config.stage_one.run))
        choose(Path(config.stage_one.run))
    else:
        check_inputs(stage_one_config(config))
    _check_network(config, len(val.info.class_names))
    return val


def trained_config(run: Path) -> RunConfig:
    """The configuration of a trained CoSA run; `ConfigError` if it is none."""
    folder = RunFolder(run)
    if not folder.config_file.is_file():
        raise ConfigError(f"no run folder at {run}: it has no config.yaml")
    config = folder.read_config()
    if config.kind != "cosa":
        raise ConfigError(f"{run} is a {config.kind} run; pseudo-masks are made by a CoSA run")
    return config
