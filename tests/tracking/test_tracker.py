from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.tracking import tracker as tracker_module
from cosa_dist.tracking.mirror import MetricLine, metric_series, parse_line, read_mapping, read_metrics
from cosa_dist.tracking.tracker import NullTracker, Tracker

NUMBERS = st.floats(allow_nan=False)


def test_lines_have_the_documented_form_and_are_there_before_closing(tmp_path: Path, monkeypatch):
    tracker = Tracker(tmp_path / "run")
    monkeypatch.setattr(tracker_module.time, "time", lambda: 1.2345)
    tracker.log_metrics({"loss/total": 1.5, "lr": 1e-5}, 7)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"time_ms": 1234, "step": 7, "metrics": {"loss/total": 1.5, "lr": 1e-5}}
    ]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_written_last_line_is_skipped_and_closed(tmp_path: Path, cut: int):
    tracker = Tracker(tmp_path)
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.log_metrics({"a": 2.0}, 2)
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    # without its line end alone, the last line is still whole
    kept = [1, 2] if cut == 1 else [1]
    assert [line.step for line in read_metrics(path)] == kept
    again = Tracker(tmp_path)
    again.log_metrics({"a": 2.0}, 2)
    again.log_metrics({"a": 3.0}, 3)
    assert [line.step for line in read_metrics(path)] == [1, 2, 3]


def test_values_without_a_json_word_survive(tmp_path: Path):
    tracker = Tracker(tmp_path)
    tracker.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line.metrics["a"])
    assert (line.metrics["b"], line.metrics["c"]) == (math.inf, -math.inf)


@given(st.dictionaries(st.text(max_size=20), NUMBERS, min_size=1), st.integers(0, 2**40))
def test_every_metric_comes_back_exactly(tmp_path_factory, metrics, step):
    tracker = Tracker(tmp_path_factory.mktemp("mirror"))
    tracker.log_metrics(metrics, step)
    (line,) = read_metrics(tracker.path)
    assert (line.step, line.metrics) == (step, metrics)
    tracker.close()


@given(st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"metrics":.*\}'))
def test_foreign_bytes_never_raise(line):
    assert parse_line(line) is None or isinstance(parse_line(line), MetricLine)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"null",
        b'{"step": 1}',
        b'{"time_ms": 1, "step": 1, "metrics": []}',
        b'{"time_ms": 1, "step": Infinity, "metrics": {}}',
        b'{"time_ms": 1, "step": 1, "metrics": {"a": "x"}}',
    ],
)
def test_lines_of_another_form_are_skipped(line):
    assert parse_line(line) is None


def test_curves(tmp_path: Path):
    tracker = Tracker(tmp_path)
    tracker.log_metrics({"a": 1.0, "b": 5.0}, 1)
    tracker.log_metrics({"a": 2.0}, 2)
    assert metric_series(tracker.path) == {"a": [(1, 1.0), (2, 2.0)], "b": [(1, 5.0)]}


def test_reading_a_missing_mirror_names_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        list(read_metrics(tmp_path / "metrics.jsonl"))


def test_tags_tables_and_files_lie_beside(tmp_path: Path):
    run = tmp_path / "run"
    outside, inside = tmp_path / "x.txt", run / "pictures" / "y.txt"
    tracker = Tracker(run)
    inside.parent.mkdir()
    outside.write_text("x")
    inside.write_text("y")
    tracker.set_tags({"kind": "cosa", "seed": "1"})
    tracker.set_tags({"seed": "2"})
    tracker.log_table([{"class": "cat", "iou": 0.5}, {"class": "dog", "iou": math.nan}], "classes")
    tracker.log_artifact(outside, "notes")
    tracker.log_artifact(inside, "pictures")
    tracker.close("FAILED")
    tracker.log_metrics({"late": 1.0}, 1)
    tracker.set_tags({"late": "x"})
    tracker.close("FINISHED")
    assert read_mapping(run / "tags.json") == {"kind": "cosa", "seed": "2", "status": "FAILED"}
    assert json.loads((run / "tables" / "classes.json").read_text())[1] == {
        "class": "dog",
        "iou": None,
    }
    assert read_mapping(run / "artifacts.json") == {
        "artifacts/notes/x.txt": "notes",
        "pictures/y.txt": "pictures",
    }
    assert (run / "artifacts" / "notes" / "x.txt").read_text() == "x"
    assert list(read_metrics(tracker.path)) == []


@pytest.mark.parametrize("content", ["", "[1]", '{"a": '])
def test_a_broken_mapping_reads_as_empty(tmp_path: Path, content: str):
    (tmp_path / "tags.json").write_text(content)
    assert read_mapping(tmp_path / "tags.json") == {}


def test_steps_that_training_repeats_after_a_crash_are_recorded_once(tmp_path: Path):
    before = Tracker(tmp_path)
    for step in (10, 20, 30):
        before.log_metrics({"loss": step / 10}, step)
    # the process dies here; the last checkpoint was at step 15
    after = Tracker(tmp_path)
    for step in (20, 30, 40):
        after.log_metrics({"loss": step / 5, "new": 1.0}, step)
    after.close()
    assert metric_series(after.path) == {
        "loss": [(10, 1.0), (20, 2.0), (30, 3.0), (40, 8.0)],
        "new": [(20, 1.0), (30, 1.0), (40, 1.0)],
    }


def test_ranks_above_0_record_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.txt"
    file.write_text("x")
    tracker = NullTracker()
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.set_tags({"kind": "cosa"})
    tracker.log_artifact(file)
    tracker.log_table([{"a": 1}], "t")
    tracker.flush()
    tracker.close()
    assert list(tmp_path.iterdir()) == [file]
