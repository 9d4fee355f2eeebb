"""Everything that is checked and created in the driver before a worker starts.

Settings, shards, network, weights, output folder and tracking store are checked first, so that a mistake
costs seconds and not an hour. Then the caller may start Ray (`ready`), and only then are the run folder, with
the resolved configuration, and its tracking run made: what could not start leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosa_dist.atomic import atomic_write
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.loading import COMMAND_LINE, build_config, nested, read_yaml, stacked, to_yaml
from cosa_dist.config.options import flatten
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import check_reading
from cosa_dist.data.shards.description import SplitDescription
from cosa_dist.data.shards.split import open_split
from cosa_dist.distributed.interruption import STOP, STOPPED, sole_driver
from cosa_dist.distributed.run_folder import absolute, run_folder, with_absolute_paths
from cosa_dist.distributed.sharing import check_sharing_early
from cosa_dist.distributed.task import FAILURE
from cosa_dist.model.weights import parse_weight_source
from cosa_dist.tracking.mlflow_runs import create_run, made_with, reopen_run
from cosa_dist.tracking.provenance import provenance
from cosa_dist.tracking.store import StoreError, check_store, prepare_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start: its resolved configuration, folder and tracking run."""

    config: RunConfig
    folder: Path
    tracking_uri: str
    run_id: str


Ready = Callable[[RunConfig], object]
"""called when all is checked and before anything is made: it may start Ray, and refuse the run"""


def at_once(config: RunConfig) -> None:
    """The `Ready` of a caller whose Ray is up already."""


def check_inputs(config: RunConfig) -> tuple[SplitDescription, SplitDescription]:
    """Check all that a run is made of; return its training and its validation split.

    Args:
        config: the run, with absolute paths.

    Raises:
        ConfigError, FileNotFoundError, ValueError: one line on what cannot be used.
    """
    check_sharing_early(config)
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
    check_network(config, len(train.info.class_names))
    return train, val


def check_places(config: RunConfig) -> None:
    """Check that the run's folder and its tracking run can be made.

    Raises:
        ConfigError, StoreError: they cannot.
    """
    check_writable(run_folder(config))
    if config.tracking.enabled:
        check_store(config.tracking.uri or None, Path(config.output))


def check_writable(folder: Path) -> None:
    """Raise `ConfigError` if a folder cannot be written to, or not be made where it is missing."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot write to {there}")


def check_network(config: RunConfig, classes: int) -> None:
    """Check that the run's network can be built for so many foreground classes.

    Raises:
        FileNotFoundError, ValueError: a backbone, weights or input sizes that do not fit.
    """
    # Only here: networks take seconds to import, and a process that only names this module needs none.
    from cosa_dist.training.state import check_network as check

    check(config, classes)


def _check_masks(config: RunConfig, train: SplitDescription) -> None:
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


def supervision_of(config: RunConfig) -> str:
    """What the run learns from, in words for tables: image tags, pseudo-masks or true masks."""
    if config.kind != "segmenter":
        return "image tags"
    return "true masks" if config.supervision == "truth" else "pseudo-masks"


def description(config: RunConfig, dataset: str) -> str:
    """What MLflow's page says of the run: what was trained on what, and which number is the headline."""
    return (
        f"Recipe `{config.recipe}`, {config.training.steps} steps on {dataset}, learning from "
        f"{supervision_of(config)}, seed {config.seed}. Headline: `final/miou_unfiltered` on split "
        f"`{config.data.val_split}`, in per cent; published figures of the field are often `true_labels`, "
        "which uses the test images' tags: never compare across protocols."
    )


def refuse_used_name(folder: Path) -> None:
    """Raise `ConfigError` if there is a run in that folder."""
    if folder.exists():
        raise ConfigError(
            f"a run named {folder.name} is already in {folder.parent}: continue it with "
            f"--resume {folder.name}, or choose another --name"
        )


def create_run_folder(folder: Path, config: RunConfig, note: dict[str, object]) -> None:
    """Create the run folder in one move: it is there with all that `--resume` needs, or not at all."""
    working = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        working.mkdir(parents=True)
        (working / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        write_note(working, note)
        refuse_used_name(folder)
        working.rename(folder)
    except OSError as error:
        # Another driver may have created a folder of that name just now.
        refuse_used_name(folder)
        raise ConfigError(f"cannot write to {folder.parent}: {error.strerror}") from None
    finally:
        shutil.rmtree(working, ignore_errors=True)


def dataset_label(config: RunConfig, split: SplitDescription) -> str:
    """Name of the data set in tables: the configured label, else the name stored in the shards."""
    return config.data.label or split.info.name


def _tags(config: RunConfig, train: SplitDescription, val: SplitDescription) -> dict[str, str]:
    """Labels of a run's tracking run."""
    return {
        "dataset": dataset_label(config, val),
        "split": config.data.val_split,
        "recipe": config.recipe,
        "backbone": config.model.backbone,
        "seed": str(config.seed),
        "steps": str(config.training.steps),
        "kind": config.kind,
        "supervision": supervision_of(config),
        **provenance(),
        "mlflow.note.content": description(config, dataset_label(config, val)),
        "data_fingerprint_train": train.fingerprint,
        "data_fingerprint_val": val.fingerprint,
    }


def prepare_run(config: RunConfig, parent_run_id: str = "", ready: Ready = at_once) -> PreparedRun:
    """Check a run's inputs and create its folder and tracking run.

    Args:
        config: the run; an empty name becomes recipe, seed and time.
        parent_run_id: tracking run of the sweep that this run belongs to.
        ready: called before anything is made.

    Raises:
        ConfigError, FileNotFoundError, ValueError: one line on what cannot be used.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    kind = "" if config.kind == "cosa" else f"-{config.kind}"
    name = config.name or f"{config.recipe}{kind}-s{config.seed}-{stamp}"
    config = with_absolute_paths(config.model_copy(update={"name": name}))
    folder = run_folder(config)
    refuse_used_name(folder)
    check_places(config)
    train, val = check_inputs(config)
    ready(config)
    uri, run_id = "", ""
    if config.tracking.enabled:
        uri = prepare_store(config.tracking.uri or None, Path(config.output))
        run_id = create_run(
            uri,
            config.tracking.experiment,
            name,
            params=flatten(config),
            tags=_tags(config, train, val),
            parent_run_id=parent_run_id,
        )
    with made_with(uri, run_id):
        create_run_folder(folder, config, {"tracking_uri": uri, "run_id": run_id, "finished": False})
    return PreparedRun(config, folder, uri, run_id)


def reopen(name: str, output: str, overrides: Mapping[str, object], ready: Ready = at_once) -> PreparedRun:
    """Take up a run that was interrupted, with its own configuration.

    Args:
        name: run name.
        output: the output folder.
        overrides: dotted options; only `distributed.*` may change.
        ready: called before the run is marked as running.

    Raises:
        ConfigError: no such run, a finished or a running one, or an option that may not change.
    """
    refuse_overrides(overrides)
    folder = run_folder(RunConfig(output=absolute(output, "output", True), name=name))
    if not (folder / "config.yaml").is_file():
        raise ConfigError(why_no_run(folder, "config.yaml"))
    note = read_note(folder)
    if note["finished"]:
        raise ConfigError(f"run {name} is finished; start a new one under another --name")
    config = with_other_workers(own_config(folder / "config.yaml"), overrides)
    uri, run_id = str(note["tracking_uri"]), str(note["run_id"])
    with sole_driver(folder):
        check_inputs(config)
        ready(config)
        if run_id:
            uri = _reopen_tracking(uri, run_id, Path(config.output))
        for left in (FAILURE, STOP, STOPPED):
            (folder / left).unlink(missing_ok=True)
    return PreparedRun(config, folder, uri, run_id)


def refuse_overrides(overrides: Mapping[str, object]) -> None:
    """Raise `ConfigError` for an option that a run which is taken up again cannot change."""
    for key in overrides:
        if not key.startswith("distributed.") and key != "output":
            raise ConfigError(f"--{key}: a resumed run keeps its configuration (but distributed.*)")


def with_other_workers(config: RunConfig, overrides: Mapping[str, object]) -> RunConfig:
    """The configuration with the `distributed.*` of some dotted options.

    Raises:
        ConfigError: one of them is wrong.
    """
    changes = {key: value for key, value in overrides.items() if key.startswith("distributed.")}
    if "distributed.workers" in changes:
        changes["distributed.fewest_workers"] = 0
    return stacked([("config.yaml", config.model_dump()), (COMMAND_LINE, nested(changes))])


def begun(config: RunConfig) -> bool:
    """Whether an earlier start of the same command has begun this run, which a scheduler now starts again.

    Raises:
        ConfigError: the run has no name to be found by, or another run has it.
    """
    if not config.name:
        raise ConfigError("--restarted: without --name the run of the earlier start cannot be found")
    config = with_absolute_paths(config)
    path = run_folder(config) / "config.yaml"
    if not path.is_file():
        return False
    asked, found = flatten(config), flatten(own_config(path))
    others = [key for key in asked if asked[key] != found.get(key) and not key.startswith("distributed.")]
    if others:
        raise ConfigError(
            f"run {config.name} in {path.parent.parent} has another {', '.join(others)} than asked for: it "
            "was not begun by this command; choose another --name"
        )
    return True


def own_config(path: Path) -> RunConfig:
    """The configuration that a run was begun with.

    Raises:
        ConfigError: the file is damaged, or this version knows other options.
    """
    try:
        values = read_yaml(path)
        if not values:
            raise ConfigError(f"{path} is empty")
        return build_config(values, str(path))
    except ConfigError as error:
        raise ConfigError(
            f"{error}; the file is damaged, or of another version: put it back from a copy, finish the run "
            "with the version that began it, or start a new one under another --name"
        ) from None


def why_no_run(folder: Path, file: str) -> str:
    """Why a folder without that file is no run: there is none of its name, or the file was lost."""
    if folder.is_dir():
        return f"{folder / file} is missing: put it back from a copy, or start a new run under another --name"
    others = [path.name for path in folder.parent.glob("*")] if folder.parent.is_dir() else []
    return f"no run named {folder.name!r} in {folder.parent}{nearest(folder.name, others)}"


def _reopen_tracking(uri: str, run_id: str, output: Path) -> str:
    """Mark the tracking run as running; a server that is away does not keep a run from going on."""
    try:
        uri = prepare_store(uri, output)
    except StoreError as error:
        log.warning("%s; the run goes on, and what is missing there is sent when it answers", error)
        return uri
    reopen_run(uri, run_id)
    return uri


def read_note(folder: Path) -> dict[str, object]:
    """The run's note: tracking URI, run id, whether it is finished.

    Raises:
        ConfigError: it is missing or damaged.
    """
    path = folder / "run.json"
    try:
        note: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        missing = ["no mapping"]
        if isinstance(note, dict):
            missing = [f"no {key}" for key in ("tracking_uri", "run_id", "finished") if key not in note]
    except (OSError, ValueError, RecursionError) as error:
        missing = [" ".join(str(getattr(error, "strerror", "") or error).split())]
    if missing:
        raise ConfigError(
            f"{path} is missing or damaged ({', '.join(missing)}): put it back from a copy, "
            "or start a new run under another --name"
        )
    return note


def write_note(folder: Path, note: dict[str, object]) -> None:
    """Write the run's note; its folder is made if it is missing."""
    atomic_write(folder / "run.json", json.dumps(note))


def mark_finished(folder: Path) -> None:
    """Note that the run came to its end."""
    write_note(folder, {**read_note(folder), "finished": True})
