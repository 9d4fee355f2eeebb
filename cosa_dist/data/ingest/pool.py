"""Writing shards in this process or in several; each one is a whole job for whoever is free.

Only descriptions travel to the processes and only counts come back, so that the time goes into
decoding. A process ends by itself when the job that started it is gone: it must not write into a
folder that a later attempt has taken over.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.shard import ShardSummary, ShardTask, write_shard

Write = Callable[[Iterable[ShardTask]], Iterator[ShardSummary]]
"""Writes shards; yields the summary of each one as soon as it is finished."""


@contextmanager
def shard_pool(processes: int) -> Iterator[Write]:
    """Give a function that writes shards with so many processes, in this one if it is one."""
    if processes == 1:
        yield lambda tasks: map(write_shard, tasks)
        return
    # Fresh processes: forking one that already runs Arrow's threads may hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start)

    def write_all(tasks: Iterable[ShardTask]) -> Iterator[ShardSummary]:
        try:
            for future in as_completed([pool.submit(write_shard, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the ingest died, perhaps for want of memory; the same command with fewer "
                "--processes continues where it stopped"
            ) from error

    try:
        yield write_all
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Prepare a process: Ctrl-C is for the job to handle, and the end of the job is the end of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the job that started this process is gone, then end it at once."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
