"""Signals to a driver, and the lock that keeps a second driver out of a run.

Ctrl-C and SIGTERM end a run at once, with its tracking run marked KILLED; it goes on from its newest
checkpoint. SIGUSR1, or a file named `stop` in the run folder, asks the workers to save a checkpoint at their
next line of log and to end: the gentle way, for a warning before a time limit.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from cosa_dist.config.errors import ConfigError

STOP = "stop"
"""file in the run folder that asks the workers to save and stop"""
STOPPED = "stopped.txt"
"""note of the workers that they have done so"""
LOCK = ".lock"
log = logging.getLogger(__name__)


class RunStoppedError(KeyboardInterrupt):
    """The run has stopped as asked and left a checkpoint; `--resume` goes on from it."""


@contextmanager
def listening_to_signals(folder: Path) -> Iterator[None]:
    """Turn SIGTERM into a KeyboardInterrupt and SIGUSR1 into the file `stop` of the run folder.

    In a thread (a sweep's trial) signals stay as they are: Python delivers them to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # A second one must not break off the farewell to the tracking store.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        (folder / STOP).touch()

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGUSR1: ask_to_stop}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def sole_driver(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, which the operating system frees when the process ends in any way.

    Raises:
        ConfigError: another driver holds it.
    """
    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"run {folder.name} is running: another process holds {folder / LOCK}; wait for its end, or "
            "stop it"
        ) from None
    except (OSError, RuntimeError) as error:
        # Some network file systems know no locks.
        log.warning("%s cannot be locked against a second driver: %s", folder, error)
    try:
        yield
    finally:
        lock.release()
