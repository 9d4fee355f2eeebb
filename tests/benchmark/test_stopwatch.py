"""The stopwatch against a clock that the test turns by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosa_dist.benchmark.measure import in_turn
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.evaluation.confusion import pair_counts
from cosa_dist.evaluation.evaluator import Tally
from cosa_dist.stopwatch import Stopwatch, one_thread, part


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


@pytest.fixture
def two_threads():
    """As where a process has two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_small_work_has_one_thread_and_what_follows_has_all_again():
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() / 0
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_pixels_of_an_evaluation_are_counted_on_one_thread(monkeypatch):
    seen = []

    def counted(*inputs):
        seen.append(torch.get_num_threads())
        return pair_counts(*inputs)

    monkeypatch.setattr("cosa_dist.evaluation.evaluator.pair_counts", counted)
    mask = torch.zeros(2, 2, dtype=torch.int64)
    tally = Tally(["cat"], EvaluationConfig(), torch.device("cpu"))
    tally.add_image("x", torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tally.add_prediction("unfiltered", mask, mask, None)
    assert (seen, torch.get_num_threads()) == ([1], 2)


LOADED = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.exit()
sys.meta_path.insert(0, Finder())
import cosa_dist.stopwatch
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_from_the_moment_that_torch_is_loaded(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    project = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected, done.stderr
