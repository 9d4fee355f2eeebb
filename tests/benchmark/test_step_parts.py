"""Parts of the real step: complete, adding up, in the right phase, and nothing left wrapped."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.benchmark.framework import framework_table, line_seconds
from cosa_dist.benchmark.step_parts import (
    LOSS_BACKWARD,
    NETWORK_BACKWARD,
    measured_step,
    step_targets,
    whole_step,
)
from cosa_dist.benchmark.step_speed import measure_step, part_rows, phase_steps
from cosa_dist.benchmark.stopwatch import Stopwatch
from cosa_dist.benchmark.traces import write_traces
from cosa_dist.benchmark.workload import prepare
from tests.benchmark.tiny_run import tiny_config

CPU = torch.device("cpu")
CO_TRAINING = {
    "assignment pass",
    "pseudo-labels: both CPL",
    "pseudo-labels: SPL",
    "loss: C2S",
    "loss: S2C",
    "loss: energy",
}
ALWAYS = {
    "loader wait",
    "online forward",
    "loss: classification",
    LOSS_BACKWARD,
    NETWORK_BACKWARD,
    "optimiser",
    "EMA",
    "Accelerate",
}


class Counter:
    """A clock that moves by one at every look, so that each part's time is a count."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize(("step", "further"), [(0, set()), (2, CO_TRAINING)])
def test_each_phase_has_its_parts_and_they_add_up(step, further):
    work, clock = prepare(tiny_config(), CPU), Counter()
    work.state.step = step
    found = measured_step(work, CPU, Stopwatch(clock=clock))
    assert set(found) >= ALWAYS | further
    assert not (CO_TRAINING - further) & set(found)
    assert all(seconds > 0 for seconds in found.values())
    # Every look of the clock falls into a part, except those that open the three outer ones.
    assert sum(found.values()) == clock.now - 3
    assert work.state.step == step + 1


def test_a_watched_step_does_what_an_unwatched_one_does():
    watched, plain = (prepare(tiny_config(losses={"warmup_steps": 0}), CPU) for _ in range(2))
    before = [getattr(t.owner, t.name) for t in step_targets(watched)]
    for _ in range(2):
        measured_step(watched, CPU, Stopwatch())
        whole_step(plain, CPU)
    assert [getattr(t.owner, t.name) for t in step_targets(watched)] == before
    for a, b in zip(watched.state.online.parameters(), plain.state.online.parameters(), strict=True):
        assert torch.equal(a, b)


def test_searched_thresholds_and_separation_are_parts_too():
    changes = {"threshold": {"kind": "two_components"}, "reliability": True}
    work = prepare(tiny_config(assignment=changes, losses={"warmup_steps": 0, "separation": 0.1}), CPU)
    found = measured_step(work, CPU, Stopwatch())
    assert {"threshold search", "loss: separation", "communication", "normalisers"} <= set(found)


def test_rows_by_hand():
    parts = {
        "warm": {"online forward": 3.0, "EMA": 1.0},
        "co": {"assignment pass": 6.0, "online forward": 2.0, "EMA": 2.0},
    }
    rows = {row["part"]: row for row in part_rows(parts)}
    assert list(rows) == ["assignment pass", "online forward", "EMA", "sum", "beside the networks"]
    assert rows["assignment pass"]["warm s"] == 0
    assert rows["EMA"]["warm %"] == 25
    assert (rows["sum"]["co s"], rows["sum"]["co %"]) == (10, 100)
    assert rows["beside the networks"]["co %"] == 20


def test_frameworks_by_hand():
    parts = {"co": {"Accelerate": 0.01, "EMA": 0.99}}
    table = framework_table(parts, tiny_config(training={"log_every": 20}), 0.4)
    shares = {row["calls of"]: row["%"] for row in table.rows}
    assert shares == pytest.approx({"Accelerate": 1, "tracking": 2, "together": 3})


def test_a_line_of_log_takes_time():
    assert 0 < line_seconds(lines=3, mlflow=False) < 10


def test_phases_of_a_run():
    assert phase_steps(tiny_config()) == {"loss warm-up": 0, "co-training": 2}
    assert phase_steps(tiny_config(losses={"warmup_steps": 0})) == {"co-training": 0}
    assert phase_steps(tiny_config(kind="control")) == {"loss warm-up": 0}


def test_a_measurement_reports_rates_of_its_own_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr("cosa_dist.benchmark.step_speed.matrix_rate", lambda device, dtype: 1e12)
    work = prepare(tiny_config(tracking={"enabled": False}), CPU)
    report = measure_step(work, CPU, rounds=1)
    titles = [table.title for table in report.tables]
    assert titles[1:] == ["parts of the step", "calls of the frameworks within a step"]
    for row in report.tables[0].rows:
        assert row["images/s"] == pytest.approx(4 / row["seconds"])
        assert row["MFU %"] == pytest.approx(row["GFLOP/s"] / 10)
        assert row["peak GB so far"] > 0.1
    files = write_traces(work, CPU, tmp_path)
    assert [file.name for file in files] == ["loss_warm-up.json", "co-training.json"]
    assert all("aten::addmm" in file.read_text() for file in files)
