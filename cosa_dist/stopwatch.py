"""The named parts of a training step, for traces and for a stopwatch.

The step marks its parts with `part(name)`: they appear in a `torch.profiler` trace, and while a `Stopwatch`
is running their seconds are added up. Parts are exclusive: while an inner part runs the outer one's clock
stands still, so the parts add up to the whole. On a GPU the stopwatch waits for the device at every border.
Parts that are small run on one thread of the CPU.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

_running: list[Stopwatch] = []


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done its work; on the CPU it does nothing."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


class Stopwatch:
    """Seconds by part, of all that runs inside `with stopwatch:` in this process."""

    def __init__(
        self, synchronise: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start at zero; `synchronise` waits for the device before the clock is read."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._synchronise, self._clock = synchronise, clock
        self._open: list[str] = []
        self._since = 0.0

    def __enter__(self) -> Stopwatch:
        _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _running.remove(self)

    def change(self, names: list[str]) -> None:
        """Charge the time since the last change to the innermost open part; `names` are open from now on."""
        self._synchronise()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._open, self._since = names, now

    def rename(self, name: str) -> None:
        """Charge what follows, up to the end of the innermost open part, to `name`."""
        self.change([*self._open[:-1], name])

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Charge what runs inside to `name`."""
        outer = self._open
        self.change([*outer, name])
        try:
            yield
        finally:
            self.change(outer)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small work on the CPU in one thread; for the main thread.

    A second one gains nothing there, and beside other work every operation would wait until it gets a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Mark what runs inside as a part of the step: in traces, and on a running stopwatch."""
    with record_function(name):
        if not _running:
            yield
            return
        with _running[-1].measuring(name):
            yield
