from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.tracking.local_tracker import (
    LocalTracker,
    MetricLine,
    metric_series,
    parse_line,
    read_mapping,
    read_metrics,
)

NUMBERS = st.floats(allow_nan=False)


def test_lines_have_the_documented_form_and_are_there_before_closing(tmp_path: Path):
    tracker = LocalTracker(tmp_path / "run")
    tracker.log_metrics({"loss/total": 1.5, "lr": 1e-5}, 7, time_ms=1234)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"time_ms": 1234, "step": 7, "metrics": {"loss/total": 1.5, "lr": 1e-5}}
    ]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_written_last_line_is_skipped_and_closed(tmp_path: Path, cut: int):
    tracker = LocalTracker(tmp_path)
    tracker.log_metrics({"a": 1.0}, 1, time_ms=1)
    tracker.log_metrics({"a": 2.0}, 2, time_ms=2)
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    # without its line end alone, the last line is still whole
    kept = [1, 2] if cut == 1 else [1]
    assert [line.step for line in read_metrics(path)] == kept
    again = LocalTracker(tmp_path)
    again.log_metrics({"a": 2.0}, 2, time_ms=20)
    again.log_metrics({"a": 3.0}, 3, time_ms=30)
    assert [line.step for line in read_metrics(path)] == [1, 2, 3]


def test_values_without_a_json_word_survive(tmp_path: Path):
    tracker = LocalTracker(tmp_path)
    tracker.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line.metrics["a"])
    assert (line.metrics["b"], line.metrics["c"]) == (math.inf, -math.inf)


@given(st.dictionaries(st.text(max_size=20), NUMBERS, min_size=1), st.integers(0, 2**40))
def test_every_metric_comes_back_exactly(tmp_path_factory, metrics, step):
    tracker = LocalTracker(tmp_path_factory.mktemp("mirror"))
    tracker.log_metrics(metrics, step, time_ms=5)
    assert list(read_metrics(tracker.path)) == [MetricLine(5, step, metrics)]
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
    tracker = LocalTracker(tmp_path)
    tracker.log_metrics({"a": 1.0, "b": 5.0}, 1)
    tracker.log_metrics({"a": 2.0}, 2)
    assert metric_series(tracker.path) == {"a": [(1, 1.0), (2, 2.0)], "b": [(1, 5.0)]}


def test_reading_a_missing_mirror_names_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        list(read_metrics(tmp_path / "metrics.jsonl"))


def test_tags_params_tables_and_files_lie_beside(tmp_path: Path):
    run = tmp_path / "run"
    outside, inside = tmp_path / "x.txt", run / "pictures" / "y.txt"
    tracker = LocalTracker(run, "id7")
    inside.parent.mkdir()
    outside.write_text("x")
    inside.write_text("y")
    tracker.set_tags({"kind": "cosa", "seed": "1"})
    tracker.set_tags({"seed": "2"})
    tracker.log_params({"losses.w": "0.1"})
    tracker.log_table([{"class": "cat", "iou": 0.5}, {"class": "dog", "iou": math.nan}], "classes")
    tracker.log_artifact(outside, "notes")
    tracker.log_artifact(inside, "pictures")
    tracker.close("FAILED")
    tracker.log_metrics({"late": 1.0}, 1)
    assert read_mapping(run / "tags.json") == {"kind": "cosa", "seed": "2", "status": "FAILED"}
    assert read_mapping(run / "params.json") == {"losses.w": "0.1"}
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
