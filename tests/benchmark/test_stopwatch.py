"""The stopwatch against a clock that the test turns by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cosa_dist.benchmark.stopwatch import Stopwatch, Target, in_turn, medians


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
    with watch.part("outer"):
        clock.wait(1)
        with watch.part("inner"):
            clock.wait(10)
        clock.wait(2)
        with watch.part("inner"):
            clock.wait(20)
    clock.wait(1000)
    with watch.part("other"):
        clock.wait(5)
    assert watch.seconds == {"outer": 3, "inner": 30, "other": 5}


def test_a_part_changes_its_name_half_way():
    clock = Hand()
    watch = Stopwatch(clock=clock)
    with watch.part("step"):
        with watch.part("losses"):
            clock.wait(3)
            watch.switch("network")
            clock.wait(4)
        clock.wait(5)
    assert watch.seconds == {"step": 5, "losses": 3, "network": 4}


def test_the_device_is_waited_for_at_every_change_before_the_clock_is_read():
    clock = Hand()
    watch = Stopwatch(synchronise=lambda: clock.wait(7), clock=clock)
    with watch.part("kernel"):
        pass
    assert watch.seconds == {"kernel": 7}


def test_functions_are_wrapped_and_put_back():
    clock = Hand()
    module = SimpleNamespace(work=lambda seconds: clock.wait(seconds) or seconds)

    class Thing:
        def step(self):
            clock.wait(2)

    thing, before = Thing(), module.work
    watch = Stopwatch(clock=clock)
    targets = [Target("a", module, "work"), Target("b", thing, "step"), Target("c", Thing, "step")]
    with watch.wrapping(targets):
        assert module.work(4) == 4
        thing.step()
        Thing().step()
    assert watch.seconds == {"a": 4, "b": 2, "c": 2}
    assert module.work is before
    assert vars(thing) == {}
    assert not hasattr(Thing.step, "__wrapped__")


def test_a_failing_function_leaves_nothing_wrapped_and_no_part_open():
    module = SimpleNamespace(work=lambda: 1 / 0)
    before, watch = module.work, Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.wrapping([Target("a", module, "work")]):
        module.work()
    assert module.work is before
    clock = Hand()
    watch.clock = clock
    with watch.part("b"):
        clock.wait(1)
    assert watch.seconds["b"] == 1


def test_a_function_that_is_gone_is_named():
    module = SimpleNamespace(work=print)
    targets = [Target("a", module, "work"), Target("loss", module, "gone")]
    with pytest.raises(AttributeError, match="'loss' at gone"), Stopwatch().wrapping(targets):
        pass
    assert module.work is print


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


def test_medians_by_hand():
    rounds = [{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0, "b": 1.0}]
    assert medians(rounds) == {"a": 2.0, "b": 1.0}
