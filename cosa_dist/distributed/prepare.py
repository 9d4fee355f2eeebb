"""A run before it starts: checked, then (after Ray is up) made with its folder and tracking run, or reopened.

One stage or several, a run is prepared and reopened in the same way. What could not start leaves nothing
behind, and an interrupted run as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import COMMAND_LINE, nested, stacked
from cosa_dist.config.options import flatten
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.shards.description import Split
from cosa_dist.distributed.checks import (
    STAGES,
    check_inputs,
    check_places,
    check_stages,
    is_staged,
)
from cosa_dist.distributed.interruption import sole_driver
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.tracking.mlflow_runs import create_run, made_with, reopen_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.store import StoreError, prepare_store

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


def no_wait(config: RunConfig) -> None:
    """The `Ready` of a caller whose Ray is up already."""


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
        yield RunNote(uri, run_id)


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


def prepare_run(config: RunConfig, parent_run_id: str = "", ready: Ready = no_wait) -> PreparedRun:
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
    ready(config)
    with new_tracking_run(config, config.name, flatten(config), tags, parent_run_id) as note:
        folder.create(config, note)
    return PreparedRun(config, folder, note)


def reopen(folder: RunFolder, overrides: Mapping[str, object], ready: Ready = no_wait) -> PreparedRun:
    """Take up a run that was interrupted, with its own configuration; of it only `distributed.*` may change.

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
    with sole_driver(folder):
        if not is_staged(config):
            check_inputs(config)
        ready(config)
        note = reopen_tracking(note, Path(config.output))
        folder.clear_end()
    return PreparedRun(config, folder, note, overrides)


def already_started(config: RunConfig) -> bool:
    """Whether an earlier start of the same command has started this run, which a scheduler now starts again.

    Raises `ConfigError` if another run has its name.
    """
    folder = RunFolder.of(config)
    if not folder.config_file.is_file():
        return False
    asked, found = flatten(config), flatten(folder.read_config())
    others = [key for key in asked if asked[key] != found.get(key) and not key.startswith("distributed.")]
    if others:
        raise ConfigError(
            f"run {config.name} in {folder.path.parent} has another {', '.join(others)} than asked for: it "
            "was not begun by this command; choose another --name"
        )
    return True
