"""A buffer with a sending thread, for a receiver that may be slow or away.

Points (numbers) are sent in batches, in order, and wait as long as the receiver is away. Actions
(everything else) follow; one that fails goes to the back of its queue, so it never holds up the
points. Nothing here knows MLflow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.5


class Point(NamedTuple):
    """One number: metric name, value, Unix time in ms, step."""

    key: str
    value: float
    time_ms: int
    step: int


Action = tuple[str, Callable[[], object]]


class Delivery:
    """Sends points and actions from its own thread until closed."""

    def __init__(
        self,
        send: Callable[[Sequence[Point]], object],
        is_permanent: Callable[[Exception], bool],
        *,
        batch: int = 500,
        seconds: float = 5.0,
        longest_pause: float = 60.0,
    ) -> None:
        """Start the thread.

        Args:
            send: delivers a batch of points or raises.
            is_permanent: whether an error will come again however often the thing is sent; it is
                then counted as refused and given up.
            batch: points that are sent at once, and without waiting for more.
            seconds: longest time that a point waits for others.
            longest_pause: longest pause between attempts while the receiver is away, in seconds.
        """
        self._send, self._is_permanent = send, is_permanent
        self._batch, self._seconds, self._longest_pause = batch, seconds, longest_pause
        self._points: deque[Point] = deque()
        self._actions: deque[Action] = deque()
        self._state = threading.Condition()
        self._hurry = False
        self._stopped = False
        self._failures = 0
        self._failures_in_a_row = 0
        self._refused = 0
        self._thread = threading.Thread(target=self._run, name="tracking-delivery", daemon=True)
        self._thread.start()

    @property
    def undelivered(self) -> int:
        """Points and actions that the receiver does not have."""
        with self._state:
            return len(self._points) + len(self._actions) + self._refused

    def add_points(self, points: Sequence[Point]) -> None:
        """Queue points; returns at once."""
        with self._state:
            self._points.extend(points)
            if len(self._points) >= self._batch and not self._failures_in_a_row:
                self._hurry = True
                self._state.notify_all()

    def add_action(self, name: str, action: Callable[[], object]) -> None:
        """Queue something else to be done, `name` is for messages; returns at once."""
        with self._state:
            self._actions.append((name, action))

    def flush(self, seconds: float) -> None:
        """Wait until the queues are empty or an attempt has failed, at most `seconds`."""
        with self._state:
            before = self._failures
            self._wait(lambda: self._failures > before, seconds)

    def close(self, seconds: float) -> int:
        """Wait until the queues are empty, at most `seconds`; stop; return what is undelivered."""
        with self._state:
            self._wait(lambda: False, seconds)
            self._stopped = True
            self._state.notify_all()
        return self.undelivered

    def _wait(self, give_up: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while (self._points or self._actions) and not give_up() and not self._stopped:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._hurry = True
            self._state.notify_all()
            self._state.wait(min(left, SHORTEST_PAUSE))

    def _run(self) -> None:
        while True:
            with self._state:
                if not self._hurry and not self._stopped:
                    self._state.wait(self._pause())
                self._hurry = False
                if self._stopped:
                    return
            delivered = self._deliver_points() and self._deliver_actions()
            with self._state:
                self._failures_in_a_row = 0 if delivered else self._failures_in_a_row + 1
                self._failures += not delivered
                self._state.notify_all()
                if not delivered:
                    self._state.wait_for(lambda: self._stopped, SHORTEST_PAUSE)

    def _pause(self) -> float:
        if not self._failures_in_a_row:
            return self._seconds
        return min(self._longest_pause, SHORTEST_PAUSE * 2.0 ** min(self._failures_in_a_row, 16))

    def _deliver_points(self) -> bool:
        """Send all points; False if the receiver is away."""
        while True:
            with self._state:
                batch = [self._points[i] for i in range(min(self._batch, len(self._points)))]
            if not batch:
                return True
            outcome = self._attempt(f"{len(batch)} points", partial(self._send, batch))
            if outcome == "away":
                return False
            with self._state:
                for _ in batch:
                    self._points.popleft()
                self._refused += len(batch) if outcome == "refused" else 0
                self._state.notify_all()

    def _deliver_actions(self) -> bool:
        """Do the waiting actions; the first one that fails goes to the back, and the round ends."""
        with self._state:
            count = len(self._actions)
        for _ in range(count):
            with self._state:
                name, action = self._actions[0]
            outcome = self._attempt(name, action)
            with self._state:
                self._actions.popleft()
                if outcome == "away":
                    self._actions.append((name, action))
                    return False
                self._refused += outcome == "refused"
                self._state.notify_all()
        return True

    def _attempt(self, name: str, action: Callable[[], object]) -> str:
        try:
            action()
        except Exception as error:  # whatever happens here, training goes on
            lines = str(error).splitlines() or [type(error).__name__]
            if self._is_permanent(error):
                log.warning("tracking: the store refuses %s: %s", name, lines[0])
                return "refused"
            if not self._failures_in_a_row:
                log.warning("tracking: cannot deliver %s, will try again: %s", name, lines[0])
            return "away"
        if self._failures_in_a_row:
            log.info("tracking: the store answers again")
            self._failures_in_a_row = 0
        return "delivered"
