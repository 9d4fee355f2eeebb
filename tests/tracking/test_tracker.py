from __future__ import annotations

from pathlib import Path

import pytest

from cosa_dist.tracking.local_tracker import LocalTracker, read_metrics
from cosa_dist.tracking.tracker import CombinedTracker, NullTracker, Tracker


class Recorder(NullTracker):
    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id
        self.calls: list[tuple] = []

    def log_metrics(self, metrics, step, *, time_ms=None):
        self.calls.append((dict(metrics), step, time_ms))

    def set_tags(self, tags):
        self.calls.append(("tags", dict(tags)))

    def close(self, status="FINISHED"):
        self.calls.append(("close", status))


@pytest.mark.parametrize("make", [NullTracker, lambda: CombinedTracker([]), Recorder])
def test_all_trackers_have_the_interface(make):
    assert isinstance(make(), Tracker)


def test_combined_gives_every_tracker_the_same_time():
    first, second = Recorder(), Recorder("r1")
    combined = CombinedTracker([first, second])
    combined.log_metrics({"loss": 1.0}, 3)
    combined.set_tags({"kind": "cosa"})
    assert combined.run_id == "r1"
    assert first.calls == second.calls
    assert first.calls[0][2] > 1_600_000_000_000
    assert first.calls[1] == ("tags", {"kind": "cosa"})


def test_combined_closes_all_even_if_one_fails():
    class Broken(Recorder):
        def close(self, status="FINISHED"):
            raise OSError("disk full")

    last = Recorder()
    CombinedTracker([Broken(), last]).close("FAILED")
    assert last.calls == [("close", "FAILED")]


def test_repeated_steps_after_a_crash_reach_no_tracker(tmp_path: Path):
    before = CombinedTracker([LocalTracker(tmp_path)])
    for step in (10, 20, 30):
        before.log_metrics({"loss": step / 10}, step, time_ms=step)
    # the process dies here; the last checkpoint was at step 15
    other = Recorder()
    after = CombinedTracker([LocalTracker(tmp_path), other])
    for step in (20, 30, 40):
        after.log_metrics({"loss": step / 10, "new": 1.0}, step, time_ms=100 + step)
    assert [(call[1], sorted(call[0])) for call in other.calls] == [
        (20, ["new"]),
        (30, ["new"]),
        (40, ["loss", "new"]),
    ]
    after.close()
    losses = [(x.step, x.time_ms) for x in read_metrics(tmp_path / "metrics.jsonl") if "loss" in x.metrics]
    assert losses == [(10, 10), (20, 20), (30, 30), (40, 140)]
