"""Everything that is checked and created in the driver before a worker starts.

Settings, shards, network, weights, output folder and tracking store are checked first, so that a mistake
costs seconds and not an hour; weights from elsewhere are fetched. Then the caller may start Ray (`ready`),
and only then are the run folder and its tracking run made: what could not start leaves nothing behind. Runs
of several stages go the same way.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import (
    COMMAND_LINE,
    build_config,
    is_recipe_file,
    load_config,
    merge,
    nested,
    read_yaml,
    stacked,
)
from cosa_dist.config.method import names_a_file
from cosa_dist.config.options import flatten, other_options
from cosa_dist.config.paths import absolute
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import check_reading
from cosa_dist.data.shards.split import Split, open_split
from cosa_dist.distributed.plan import Resources, WorkerPlan, check_batch_early, check_room, plan_workers
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.model.weights import parse_weight_source
from cosa_dist.tracking.mlflow_runs import create_run, made_with, reopen_run
from cosa_dist.tracking.provenance import git_commit, provenance
from cosa_dist.tracking.store import MEMORY, SQLITE, StoreError, check_store, prepare_store

LONGEST_NAME = 200
"""bytes; what is made beside a run bears a longer one, and file systems end at 255"""
ONE, MASKS, TWO = STAGES = ("stage-one", "pseudo-masks", "stage-two")
INHERITED_DATA = ("shards", "reading", "cache", "train_split", "val_split", "label")
log = logging.getLogger(__name__)

Ready = Callable[[RunConfig], object]
"""called when all is checked and before anything is made: it may start Ray, and refuse the run"""


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start or go on."""

    config: RunConfig
    folder: RunFolder
    note: RunNote
    overrides: Mapping[str, object] = field(default_factory=dict)
    """dotted `distributed.*` options that it was reopened with"""


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
        "data.shards": absolute(config.data.shards, "data.shards", True),
        "data.cache": absolute(config.data.cache, "data.cache"),
        "model.weights": weights,
        "model.weights_folder": absolute(
            config.model.weights_folder or f"{config.output}/weights", "model.weights_folder", True
        ),
        "tracking.uri": uri,
        "stage_one.recipe": first,
        "stage_one.run": absolute(config.stage_one.run, "stage_one.run"),
    }
    return build_config(merge(config.model_dump(), nested(changes)))


def check_inputs(config: RunConfig, *, new: bool = True) -> tuple[Split, Split]:
    """Check all that a (new) run is made of; return its training and its validation split."""
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
    # Only here: networks take seconds to import, and a process that only names this module needs none.
    from cosa_dist.training.state import check_network

    check_network(config, len(train.info.class_names), new=new)
    return train, val


def fetch_weights(config: RunConfig) -> None:
    """Fetch what a run's trainings start from and is not there yet; errors are those of `model.build`."""
    from cosa_dist.model.build import fetch_weights as fetch

    for trained in trained_stages(config).values():
        fetch(trained.model)


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
        "pseudo_masks": config.pseudo_masks.model_dump(),
        "data": {name: getattr(config.data, name) for name in INHERITED_DATA},
    }
    return resolve(build_config(merge(first.model_dump(), shared), f"recipe {config.stage_one.recipe}"))


def stage_two_config(config: RunConfig, shards: Path, weights: str) -> RunConfig:
    """The second stage's configuration: the run's own, on the labelled shards, started from weights."""
    own = {
        "name": f"{config.name}-{TWO}",
        "data": {"shards": str(shards)},
        "model": {"weights": weights},
        "stage_one": {"recipe": "", "options": {}, "run": "", "start": "weights"},
    }
    return build_config(merge(config.model_dump(), own), "second stage")


def trained_stages(config: RunConfig) -> dict[str, RunConfig]:
    """The configurations that a run trains, by the stages' names; of a run without stages, its own.

    Raises what `stage_one_config` raises.
    """
    if not is_staged(config):
        return {"": config}
    first = {} if config.stage_one.run else {ONE: stage_one_config(config)}
    return first | {TWO: config}


def plan_stages(
    config: RunConfig, resources: Resources, nodes: Sequence[Resources] = (), *, complete: bool = False
) -> dict[str, WorkerPlan]:
    """The plan of every stage that a run trains; `ConfigError`, which names it, if one cannot be had.

    Where the nodes are `complete`, they must have room for it: no more are going to start.
    """
    plans = {}
    for stage, trained in trained_stages(config).items():
        with _named(stage):
            check_batch_early(trained)
            plans[stage] = plan_workers(trained, resources, nodes)
            if complete:
                check_room(plans[stage], nodes)
    return plans


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """Let an error of the block begin with the stage."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{stage}: {error}" if stage else str(error)) from None


def check_stages(config: RunConfig) -> Split:
    """Check a first stage's inputs, or the run that stands for it, and the second stage's network."""
    from cosa_dist.inference.trained import choose
    from cosa_dist.training.state import check_network, check_same_encoder, check_squares

    for stage, trained in trained_stages(config).items():
        with _named(stage):
            check_batch_early(trained)
    val = check_reading(config.data, config.data.val_split)
    if config.stage_one.run:
        first = trained_config(Path(config.stage_one.run))
        choose(Path(config.stage_one.run))
    else:
        first = stage_one_config(config)
        check_inputs(first)
    with _named(ONE):
        check_squares(first, config.pseudo_masks.scales or first.evaluation.scales)
    check_network(config, len(val.info.class_names))
    if config.stage_one.start == "encoder":
        check_same_encoder(first, config)
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


@contextmanager
def new_tracking_run(
    config: RunConfig,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    parent_run_id: str = "",
) -> Iterator[RunNote]:
    """Create a tracking run, if tracking is on, for what the block makes; where that fails, it is FAILED."""
    uri = run_id = ""
    if config.tracking.enabled:
        uri = prepare_store(config.tracking.uri or None, Path(config.output))
        experiment, tags = config.tracking.experiment, {**tags, **provenance()}
        run_id = create_run(uri, experiment, name, params=params, tags=tags, parent_run_id=parent_run_id)
    with made_with(uri, run_id):
        yield RunNote(uri, run_id, commit=git_commit())


def reopen_tracking(note: RunNote, output: Path) -> RunNote:
    """Mark a tracking run as running; a server that is unavailable does not keep a run from going on."""
    if not note.run_id:
        return note
    try:
        note = replace(note, tracking_uri=prepare_store(note.tracking_uri, output))
    except StoreError as error:
        log.warning("%s; the run goes on, and what is missing there is sent when it answers", error)
        return note
    reopen_run(note.tracking_uri, note.run_id)
    return note


def dataset_label(config: RunConfig, split: Split) -> str:
    """Name of the data set in tables: the configured label, else the name stored in the shards."""
    return config.data.label or split.info.name


def _tags(config: RunConfig, train: Split, val: Split) -> dict[str, str]:
    """Labels of a run's tracking run, with a description for MLflow's page."""
    supervision = "image tags"
    if config.kind == "segmenter":
        supervision = "true masks" if config.supervision == "truth" else "pseudo-masks"
    dataset = dataset_label(config, val)
    description = (
        f"Recipe `{config.recipe}`, {config.training.steps} steps on {dataset}, learning from {supervision}, "
        f"seed {config.seed}. Headline: `final/miou_unfiltered` on split `{config.data.val_split}`, in per "
        "cent; published figures of the field are often `true_labels`, which uses the test images' tags: "
        "never compare across protocols."
    )
    return {
        "dataset": dataset,
        "split": config.data.val_split,
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "seed": str(config.seed),
        "steps": str(config.training.steps),
        "kind": config.kind,
        "supervision": supervision,
        "mlflow.note.content": description,
        "data_fingerprint_train": train.fingerprint,
        "data_fingerprint_val": val.fingerprint,
    }


def prepare_run(
    config: RunConfig, parent_run_id: str = "", ready: Ready = lambda config: None
) -> PreparedRun:
    """Check what can be checked of a run, and create its folder and tracking run.

    `config` is resolved (see `resolve`); `ready` is called before anything is made. Raises one line
    (ConfigError, FileNotFoundError, ValueError) on what cannot be used.
    """
    folder = RunFolder.of(config)
    staged = is_staged(config)
    for used in (folder, *(folder.beside(stage) for stage in STAGES if staged)):
        used.refuse_used_name()
    check_places(config)
    if staged:
        dataset = dataset_label(config, check_stages(config))
        tags = {"kind": "stages", "recipe": config.recipe, "seed": str(config.seed)}
        tags |= {"dataset": dataset, "backbone": config.model.backbone}
    else:
        tags = _tags(config, *check_inputs(config))
    fetch_weights(config)
    ready(config)
    with new_tracking_run(config, config.name, flatten(config), tags, parent_run_id) as note:
        folder.create(config, note)
    return PreparedRun(config, folder, note)


def reopen(
    folder: RunFolder, overrides: Mapping[str, object], ready: Ready = lambda config: None
) -> PreparedRun:
    """Resume an interrupted run with its own configuration, of which only `distributed.*` may change.

    `ready` is called before the run is marked as running. Raises `ConfigError` for no such run, a finished or
    a running one, or an option that may not change.
    """
    for key in overrides:
        if not key.startswith("distributed.") and key != "output":
            raise ConfigError(f"--{key}: a resumed run keeps its configuration (but distributed.*)")
    config, note = folder.read_config(), folder.read_note()
    if note.finished:
        raise ConfigError(f"run {folder.name} is finished; start a new one under another --name")
    changes = {key: value for key, value in overrides.items() if key.startswith("distributed.")}
    if "distributed.workers" in changes:
        changes["distributed.fewest_workers"] = 0
    config = stacked([(folder.config_file.name, config.model_dump()), (COMMAND_LINE, nested(changes))])
    with folder.lock():
        if not is_staged(config):
            check_inputs(config, new=False)
        if not folder.has_checkpoint:
            fetch_weights(config)
        ready(config)
        note = reopen_tracking(note, Path(config.output))
        folder.clear_end()
    return PreparedRun(config, folder, note, overrides)


def already_started(config: RunConfig) -> bool:
    """Whether an earlier start of the same command has made this run; `ConfigError` if another one has."""
    folder = RunFolder.of(config)
    if not folder.config_file.is_file():
        return False
    asked, found = flatten(config), flatten(folder.read_config())
    if others := other_options(asked, found, read_yaml(folder.config_file)):
        raise ConfigError(
            f"run {config.name} in {folder.path.parent} has another {', '.join(others)} than asked for: it "
            "was not begun by this command; choose another --name"
        )
    return True
