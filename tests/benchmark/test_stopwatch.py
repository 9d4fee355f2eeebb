"""The stopwatch against a clock that the test turns by hand."""

from __future__ import annotations

import pytest

from cosa_dist.benchmark.measure import in_turn
from cosa_dist.stopwatch import Stopwatch, part


class Hand:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


def test_inner_parts_stop_the_outer_clock():
    clock = Hand()
    watch = Stopwatch(clock=clock)
    with watch.measuring("outer"):
        clock.wait(1)
        with watch.measuring("inner"):
            clock.wait(10)
        clock.wait(2)
        with watch.measuring("inner"):
            clock.wait(20)
    clock.wait(1000)
    with watch.measuring("other"):
        clock.wait(5)
    assert watch.seconds == {"outer": 3, "inner": 30, "other": 5}


def test_a_part_changes_its_name_half_way():
    clock = Hand()
    watch = Stopwatch(clock=clock)
    with watch.measuring("step"):
        with watch.measuring("losses"):
            clock.wait(3)
            watch.rename("network")
            clock.wait(4)
        clock.wait(5)
    assert watch.seconds == {"step": 5, "losses": 3, "network": 4}


def test_the_device_is_waited_for_at_every_change_before_the_clock_is_read():
    clock = Hand()
    watch = Stopwatch(synchronise=lambda: clock.wait(7), clock=clock)
    with watch.measuring("kernel"):
        pass
    assert watch.seconds == {"kernel": 7}


def test_parts_are_charged_only_while_a_stopwatch_runs():
    clock = Hand()
    with part("before"):
        clock.wait(1)
    with Stopwatch(clock=clock) as watch:
        with part("a"):
            clock.wait(4)
            with part("b"):
                clock.wait(2)
        with pytest.raises(ZeroDivisionError), part("c"):
            clock.wait(3 / 0)
        with part("d"):
            clock.wait(1)
    with part("after"):
        clock.wait(1)
    assert watch.seconds == {"a": 4, "b": 2, "c": 0, "d": 1}


def test_ways_take_turns_and_warm_up_does_not_count():
    clock, order = Hand(), []

    def way(name, *seconds):
        each = iter(seconds)
        return lambda: (order.append(name), clock.wait(next(each)))

    found = in_turn({"slow": way("slow", 50, 4, 6), "fast": way("fast", 60, 1, 2)}, 2, clock=clock)
    assert found == {"slow": [4, 6], "fast": [1, 2]}
    assert order == ["slow", "fast"] * 3
    with pytest.raises(ValueError, match="1 round"):
        in_turn({}, 0)
