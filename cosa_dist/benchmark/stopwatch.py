"""Where the time of running code goes, without changing that code.

Named functions are wrapped for the time of a measurement; each wrapper opens a part, runs the function and
closes the part. Parts are exclusive: while an inner part runs, the outer one's clock stands still, so that
the parts of a step add up to the step. On a GPU the device is waited for at every change of part.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch

Clock = Callable[[], float]


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done all it was told; nothing on the CPU."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass(frozen=True)
class Target:
    """A function to be wrapped: the part it belongs to, and where the running code finds it."""

    part: str
    owner: Any
    """module or object whose attribute it is"""
    name: str


@dataclass
class Stopwatch:
    """Seconds by part; parts may be opened inside each other."""

    synchronise: Callable[[], None] = lambda: None
    clock: Clock = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def _charge(self) -> None:
        """Give the time since the last change to the innermost open part."""
        self.synchronise()
        now = self.clock()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what runs inside to `name`."""
        self._charge()
        self._open.append(name)
        depth = len(self._open)
        try:
            yield
        finally:
            self._charge()
            del self._open[depth - 1 :]

    def switch(self, name: str) -> None:
        """Charge what follows, up to the end of the innermost open part, to `name`."""
        self._charge()
        if self._open:
            self._open[-1] = name

    @contextmanager
    def wrapping(self, targets: Sequence[Target]) -> Iterator[None]:
        """Wrap the functions for the time of the context, and put them back.

        Raises:
            AttributeError: a function that is not there (any more).
        """
        undo: list[Callable[[], None]] = []
        try:
            for target in targets:
                undo.append(_replace(target.owner, target.name, self._timed(target)))
            yield
        finally:
            for restore in reversed(undo):
                restore()

    def _timed(self, target: Target) -> Callable[..., Any]:
        original = getattr(target.owner, target.name, None)
        if original is None:
            raise AttributeError(
                f"the benchmark measures {target.part!r} at {target.name} of {target.owner}, "
                "which is not there: name the function that does it now"
            )

        @wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(target.part):
                return original(*arguments, **named)

        return timed


def _replace(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute; returns what brings the old state back."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before) if own else delattr(owner, name)


def seconds_of(work: Callable[[], object], synchronise: Callable[[], None], clock: Clock) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    synchronise()
    started = clock()
    work()
    synchronise()
    return clock() - started


def in_turn(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    synchronise: Callable[[], None] = lambda: None,
    *,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of several ways of doing a thing, turn by turn, so that all meet the same machine.

    Args:
        ways: by name, what to call.
        rounds: calls of each that count.
        synchronise: waits for the device.
        warm_up: calls of each that do not count.
        clock: seconds.

    Returns:
        By name, the seconds of each round.

    Raises:
        ValueError: no round, or fewer than no warm-up.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"a measurement needs 1 round and 0 warm-up or more, not {rounds} and {warm_up}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + rounds):
        for name, work in ways.items():
            spent = seconds_of(work, synchronise, clock)
            if turn >= warm_up:
                seconds[name].append(spent)
    return seconds


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of each part over the rounds; a part that a round did not have counts as 0 there."""
    names = dict.fromkeys(name for seconds in rounds for name in seconds)
    return {name: statistics.median(seconds.get(name, 0.0) for seconds in rounds) for name in names}
