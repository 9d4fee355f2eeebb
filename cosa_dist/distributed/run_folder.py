"""The folder of a run: the names of its files, its note and lock, and what is recorded of the run's end.

The folder owns a run: configuration, checkpoints, metrics and outcome are read from here, whatever becomes of
Ray's and MLflow's state. No other module of the package knows the names of these files. Ctrl-C and SIGTERM
end a run at once; SIGUSR1, or a file named `stop`, asks the workers to save a checkpoint and to end.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from cosa_dist.atomic import atomic_folder, atomic_write
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.loading import read_yaml, stored_config, to_yaml
from cosa_dist.config.schema import RunConfig

log = logging.getLogger(__name__)


class RunFailedError(RuntimeError):
    """A run that did not come to its end; the message is the first cause."""


class RunStoppedError(KeyboardInterrupt):
    """The run has stopped as asked and left a checkpoint; `--resume` goes on from it."""


@dataclass(frozen=True)
class RunNote:
    """What a run's folder notes of it beside its configuration."""

    tracking_uri: str
    run_id: str
    finished: bool = False
    key: str = ""
    """of a labelling: hash of all that it is made of"""
    commit: str = ""
    """of the code that began it"""


@dataclass(frozen=True)
class WorkerTask:
    """Everything a worker needs, as plain values that travel to other nodes."""

    config: dict[str, Any]
    folder: str
    tracking_uri: str
    run_id: str
    use_gpu: bool
    micro_batch_size: int
    """images at a time, at most (0: the worker's whole part)"""
    cpus: int


class RunFolder:
    """A run's folder, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config_file = path / "config.yaml"
        self.note_file = path / "run.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.lock_file = path / ".lock"
        # Its presence asks the workers to save a checkpoint and stop; then they leave the second one.
        self.stop_file = path / "stop"
        self.stopped_file = path / "stopped.txt"
        # A worker met an error that a restart would meet again.
        self.failure_file = path / "failure.txt"
        # A sweep's scheduler has ended the run; folders of earlier versions have the second name.
        self.pruned_files = (path / "pruned.json", path / "stopped.json")

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder of a run, from its output folder and its name."""
        return cls(Path(config.output) / "runs" / config.name)

    def beside(self, suffix: str) -> RunFolder:
        """The folder of a run that belongs to this one, `NAME-suffix`."""
        return RunFolder(self.path.with_name(f"{self.name}-{suffix}"))

    def report_file(self, network: str, split: str = "") -> Path:
        """A network's report: of the final evaluation, or of a later one (jobs/evaluate.py) on a split."""
        return self.path / (f"evaluation_{split}_{network}.json" if split else f"report_{network}.json")

    def counts_file(self, network: str, split: str = "") -> Path:
        """The counts of each image that belong to a report."""
        return self.report_file(network, split).with_suffix(".npz")

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked for a checkpoint and a stop."""
        return self.stop_file.exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been written, be it whole or not."""
        return any(self.checkpoints.glob("step-*"))

    @property
    def stopped_by_user(self) -> str | None:
        """What the workers noted when they stopped as requested, None if they did not."""
        return _text(self.stopped_file)

    @property
    def failure(self) -> str | None:
        """The recorded failure in one line, None if there is none."""
        return _text(self.failure_file)

    @property
    def pruned(self) -> bool:
        """Whether a sweep's scheduler has ended the run: what its dying processes meet is no failure."""
        return any(path.is_file() for path in self.pruned_files)

    def pruned_step(self) -> int | None:
        """Step of the evaluation at which the scheduler ended the run, None if it did not or does not say."""
        notes = [read_mapping(path) for path in self.pruned_files]
        return next((int(note["step"]) for note in notes if "step" in note), None)

    def mark_pruned(self, step: int) -> None:
        """Note that the scheduler ended the run after its evaluation at `step`."""
        atomic_write(self.pruned_files[0], json.dumps({"step": step}))

    def clear_end(self) -> None:
        """Remove what an earlier start left about its end, before the run goes on."""
        for left in (self.failure_file, self.stop_file, self.stopped_file):
            left.unlink(missing_ok=True)

    def refuse_used_name(self) -> None:
        """Raise `ConfigError` if there is a run in this folder."""
        if self.path.exists():
            raise ConfigError(
                f"a run named {self.name} is already in {self.path.parent}: continue it with "
                f"--resume {self.name}, or choose another --name"
            )

    def create(self, config: RunConfig, note: RunNote) -> None:
        """Make the folder in one move: it is there with all that `--resume` needs, or not at all."""
        try:
            with atomic_folder(self.path) as temporary:
                working = RunFolder(temporary)
                working.config_file.write_text(to_yaml(config), encoding="utf-8")
                working.write_note(note)
                self.refuse_used_name()
        except OSError as error:
            # Another driver may have created a folder of that name just now.
            self.refuse_used_name()
            raise ConfigError(f"cannot write to {self.path.parent}: {error.strerror}") from None

    def read_config(self) -> RunConfig:
        """The configuration that the run was started with.

        Raises `ConfigError` if there is no such run, or its file is damaged or of another version.
        """
        if not self.config_file.is_file():
            raise ConfigError(self.why_missing(self.config_file))
        try:
            values = read_yaml(self.config_file)
            if not values:
                raise ConfigError(f"{self.config_file} is empty")
            return stored_config(values, str(self.config_file))
        except ConfigError as error:
            raise ConfigError(
                f"{error}; the file is damaged, or of another version: put it back from a copy, finish the "
                "run with the version that began it, or start a new one under another --name"
            ) from None

    def why_missing(self, file: Path) -> str:
        """Why the run lacks one of its files: there is no run of this name, or the file was lost."""
        if self.path.is_dir():
            return f"{file} is missing: put it back from a copy, or start a new run under another --name"
        others = [path.name for path in self.path.parent.glob("*")]
        return f"no run named {self.name!r} in {self.path.parent}{nearest(self.name, others)}"

    def read_note(self) -> RunNote:
        """The run's note; `ConfigError` if it is missing or damaged."""
        try:
            return TypeAdapter(RunNote).validate_json(self.note_file.read_bytes())
        except ValidationError as error:
            reason = ", ".join(": ".join((*map(str, e["loc"]), e["msg"])) for e in error.errors())
        except OSError as error:
            reason = str(error.strerror)
        raise ConfigError(
            f"{self.note_file} is missing or damaged ({reason}): put it back from a copy, "
            "or start a new run under another --name"
        )

    def write_note(self, note: RunNote) -> None:
        """Write the run's note; its folder is made if it is missing."""
        atomic_write(self.note_file, json.dumps(asdict(note)))

    def mark_finished(self) -> None:
        """Note that the run came to its end."""
        self.write_note(replace(self.read_note(), finished=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock, which the operating system frees when the process ends in any way.

        Raises `ConfigError` if another driver holds it.
        """
        lock = FileLock(self.lock_file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"run {self.name} is running: another process holds {self.lock_file}; wait for its end, or "
                "stop it"
            ) from None
        except (OSError, RuntimeError) as error:
            # Some network file systems know no locks.
            log.warning("%s cannot be locked against a second driver: %s", self.path, error)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Turn SIGTERM into a KeyboardInterrupt and SIGUSR1 into the run's request to stop.

        In a thread (a sweep's trial) signals stay as they are: Python delivers them to the main thread only.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            # A second signal must not keep the tracking run from getting its status.
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, signal.SIG_IGN)
            raise KeyboardInterrupt(signal.Signals(number).name)

        def request_stop(number: int, frame: FrameType | None) -> None:
            self.stop_file.touch()

        handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGUSR1: request_stop}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping, empty if there is no such file or no whole one in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
