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
from types import FrameType

from filelock import FileLock, Timeout

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.run_folder import RunFolder

log = logging.getLogger(__name__)


class RunStoppedError(KeyboardInterrupt):
    """The run has stopped as asked and left a checkpoint; `--resume` goes on from it."""


@contextmanager
def handle_signals(folder: RunFolder) -> Iterator[None]:
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
        folder.stop_file.touch()

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGUSR1: request_stop}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def sole_driver(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which the operating system frees when the process ends in any way.

    Raises `ConfigError` if another driver holds it.
    """
    lock = FileLock(folder.lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"run {folder.name} is running: another process holds {folder.lock_file}; wait for its end, or "
            "stop it"
        ) from None
    except (OSError, RuntimeError) as error:
        # Some network file systems know no locks.
        log.warning("%s cannot be locked against a second driver: %s", folder.path, error)
    try:
        yield
    finally:
        lock.release()
