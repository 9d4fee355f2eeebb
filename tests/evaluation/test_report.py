"""Reports: metric names, rows, the JSON round trip and the table."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.evaluation.evaluator import CAM_MEASUREMENTS, CRF_MEASUREMENTS
from cosa_dist.evaluation.protocols import PROTOCOLS
from cosa_dist.evaluation.report import EvalReport, SegmentationScore, as_text, better_report, read_reports


def make_report(network: str = "online", context: float | None = None) -> EvalReport:
    scores = {
        name: SegmentationScore(70.0 + i, 90.0, 80.0, (95.5, 45.25 + i, None), context)
        for i, name in enumerate((*PROTOCOLS, *CAM_MEASUREMENTS))
    }
    return EvalReport(
        network=network,
        class_names=("cat", "dog"),
        images=7,
        images_without_mask=2,
        scores=scores,
        map_image=88.0,
        map_class=77.0,
        aux_map_class=None,
        cam_miou_by_background={0.3: 41.0, 0.35: 42.5, 1e-05: None},
        settings={"size": 64, "cam_background_grid": [0.3, 0.35], "crf": None},
        image_set="0123456789abcdef",
    )


def test_the_better_report_has_the_higher_unfiltered_miou():
    def scored(network: str, miou: float | None) -> EvalReport:
        report = make_report(network)
        score = replace(report.scores["unfiltered"], miou=miou)
        return replace(report, scores={**report.scores, "unfiltered": score})

    def better(**mious: float | None) -> str | None:
        found = better_report({name: scored(name, miou) for name, miou in mious.items()})
        return found.network if found else None

    assert better(online=40.0, assignment=41.0) == "assignment"
    assert better(online=41.0, assignment=41.0) == "online"
    assert better(online=None, average=0.0) == "average"
    assert better(online=None, assignment=None) is None
    assert better() is None


def test_metric_names_and_values():
    metrics = make_report(context=12.5).metrics()
    assert metrics["online/miou_unfiltered"] == 70.0
    assert metrics["online/miou_true_labels"] == 72.0
    assert metrics["online/cam_miou_true_labels"] == 73.0
    assert metrics["online/aux_cam_miou_true_labels"] == 74.0
    assert metrics["online/pixel_accuracy_unfiltered"] == 90.0
    assert metrics["online/cam_context_false_foreground_true_labels"] == 12.5
    assert metrics["online/map_class"] == 77.0
    assert metrics["online/cam_miou_predicted_labels_at_0.35"] == 42.5
    assert metrics["online/images"] == 7.0
    assert all(type(value) is float for value in metrics.values())
    # The names that MLflow takes.
    assert all(re.fullmatch(r"[\w.\-/ ]+", name) for name in metrics)


def test_scores_without_a_value_are_no_metrics():
    metrics = make_report().metrics()
    assert not any("context" in name or "aux_map" in name for name in metrics)


def test_intervals_are_metrics_json_and_a_column():
    report = make_report()
    scores = {**report.scores, "unfiltered": replace(report.scores["unfiltered"], interval=(68.25, 71.5))}
    report = replace(report, scores=scores)
    metrics = report.metrics()
    assert (metrics["online/miou_unfiltered_low"], metrics["online/miou_unfiltered_high"]) == (68.25, 71.5)
    assert not any(name.endswith(("_low", "_high")) for name in metrics if "unfiltered" not in name)
    again = EvalReport.from_json(report.to_json())
    assert again == report
    assert again.scores["unfiltered"].interval == (68.25, 71.5)
    assert "68.2 to 71.5" in as_text([report])
    assert "95 %" in as_text([report])
    assert "95 %" not in as_text([make_report()])
    assert report.with_intervals() is report  # there are no counts to make them of


def test_rows_per_class_start_with_the_background():
    rows = make_report().per_class_rows()
    assert [row["class"] for row in rows] == ["background", "cat", "dog"]
    assert rows[1]["unfiltered"] == 45.25
    assert rows[2]["cam_true_labels"] is None


@pytest.mark.parametrize("context", [None, 3.25])
def test_json_round_trip(context):
    report = make_report(context=context)
    assert EvalReport.from_json(report.to_json()) == report


def test_a_report_with_a_crf_round_trips_and_one_from_before_it_is_read():
    plain = make_report()
    with_crf = replace(
        plain,
        scores={**plain.scores, **dict.fromkeys(CRF_MEASUREMENTS, plain.scores["unfiltered"])},
        settings={**plain.settings, "crf": {"iterations": 10}},
    )
    assert EvalReport.from_json(with_crf.to_json()) == with_crf
    assert with_crf.metrics()["online/miou_unfiltered_crf"] == 70.0
    assert "true_labels_crf" in as_text([with_crf])
    old = json.loads(plain.to_json())
    del old["settings"]["crf"], old["image_set"], old["benchmark"]
    expected = replace(plain, image_set="", settings=old["settings"])
    assert EvalReport.from_json(json.dumps(old)) == expected


def test_a_damaged_report_is_named(tmp_path):
    whole = make_report().to_json()
    for text in (whole[:300], whole.replace("45.25", '"x"', 1), whole.replace("unfiltered", "other"), "null"):
        (tmp_path / "report_online.json").write_text(text)
        with pytest.raises(ValueError, match=r"report_online\.json is damaged: no evaluation report \("):
            read_reports(tmp_path)


@given(st.text() | st.dictionaries(st.sampled_from(["network", "scores"]), st.none()).map(json.dumps))
def test_other_text_is_refused_with_a_clear_error(text):
    with pytest.raises(ValueError, match="no evaluation report"):
        EvalReport.from_json(text)


def test_table_shows_networks_protocols_and_classes():
    text = as_text([make_report("online"), make_report("assignment")])
    assert "online: 7 images (set 01234567)" in text
    assert "7 images (VOC val)" in as_text([replace(make_report(), benchmark="VOC val")])
    assert "in no mask" not in text
    assert "online: in no mask: car, tram" in as_text(
        [replace(make_report(), absent_classes=("car", "tram"))]
    )
    assert "context" not in text
    assert "context" in as_text([make_report(context=1.0)])
    for part in ("online", "assignment", "auxiliary CAM", "predicted_labels", "70.00", "dog", "-"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "\x1b" not in text
