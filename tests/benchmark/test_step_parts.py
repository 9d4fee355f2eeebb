"""Parts of the real step: complete, adding up, in the right phase, and changing nothing."""

from __future__ import annotations

import json

import pytest
import torch

from cosa_dist.benchmark.step import (
    LOSS_BACKWARD,
    NETWORK_BACKWARD,
    line_seconds,
    measure_checkpoint,
    measure_step,
    part_rows,
    step_parts,
    write_traces,
)
from cosa_dist.benchmark.workload import phase_steps, prepare
from tests.benchmark.tiny_run import tiny_config

CPU = torch.device("cpu")
CO_TRAINING = {"assignment pass", "pseudo-labels", "loss: C2S", "loss: S2C", "loss: energy"}
ALWAYS = {
    "loader wait",
    "online forward",
    "loss: classification",
    LOSS_BACKWARD,
    NETWORK_BACKWARD,
    "optimiser",
    "EMA",
}


@pytest.mark.parametrize(("step", "further"), [(0, set()), (2, CO_TRAINING)])
def test_each_phase_has_its_parts(step, further):
    work = prepare(tiny_config(), CPU)
    found = step_parts(work, CPU, 2, step)
    assert set(found) >= ALWAYS | further
    assert not (CO_TRAINING - further) & set(found)
    assert all(seconds > 0 for seconds in found.values())
    assert work.state.step == step + 1


def test_a_watched_step_does_what_an_unwatched_one_does():
    watched, plain = (prepare(tiny_config(losses={"warmup_steps": 0}), CPU) for _ in range(2))
    for step in range(2):
        step_parts(watched, CPU, 1, step)
        plain.take(step, CPU)
    for a, b in zip(watched.state.online.parameters(), plain.state.online.parameters(), strict=True):
        assert torch.equal(a, b)


def test_searched_thresholds_and_separation_are_parts_too():
    changes = {"threshold": {"kind": "two_components"}, "reliability": True}
    work = prepare(tiny_config(assignment=changes, losses={"warmup_steps": 0, "separation": 0.1}), CPU)
    found = step_parts(work, CPU, 1, 0)
    assert {"threshold search", "loss: separation", "normalisers"} <= set(found)


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


def test_a_line_of_log_takes_time():
    assert 0 < line_seconds(lines=3, mlflow=False) < 10


def test_phases_of_a_run():
    assert phase_steps(tiny_config()) == {"loss warm-up": 0, "co-training": 2}
    assert phase_steps(tiny_config(losses={"warmup_steps": 0})) == {"co-training": 0}
    assert phase_steps(tiny_config(kind="control")) == {"loss warm-up": 0}


def test_a_measurement_reports_rates_of_its_own_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr("cosa_dist.benchmark.step.matrix_rate", lambda device, dtype: 1e12)
    work = prepare(tiny_config(tracking={"enabled": False}), CPU)
    report = measure_step(work, CPU, rounds=1)
    titles = [table.title for table in report.tables]
    assert titles == ["whole step", "parts of the step"]
    assert any("lines of log" in note for note in report.notes)
    for row in report.tables[0].rows:
        assert row["images/s"] == pytest.approx(4 / row["seconds"])
        assert row["MFU %"] == pytest.approx(row["GFLOP/s"] / 10)
        assert row["peak GB"] > 0.1
    files = write_traces(work, CPU, tmp_path)
    assert [file.name for file in files] == ["loss_warm-up.json", "co-training.json"]
    assert all({"aten::addmm", "online forward"} <= set(names(file)) for file in files)


def names(file):
    """The names of a trace's events."""
    return [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]


@pytest.mark.slow
def test_a_checkpoint_is_measured_in_a_process_of_the_build():
    (row,) = measure_checkpoint(tiny_config(), "", 1).tables[0].rows
    assert set(row) == {"GB", "first s", "later s"}
    assert all(value > 0 for value in row.values())
