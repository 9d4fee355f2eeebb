"""Published rows: what they say, and beside which runs they stand."""

from __future__ import annotations

import pytest

from cosa_dist.reports.leaderboard import ONE_VIEW, PUBLISHED, UNKNOWN, RunRecord, leaderboard


def test_numbers_of_the_method_stand_under_their_protocol():
    found = {(r.run, f"{r.dataset} {r.split}", r.protocol): r.miou for r in PUBLISHED}
    assert found["CoSA + CRF", "VOC val", "true_labels_crf"] == 76.4
    assert found["CoSA", "VOC val", "true_labels"] == 76.2
    assert found["CoSA", "VOC test", "server"] == 75.1
    assert found["CoSA + CRF", "COCO val", "true_labels_crf"] == 51.1
    assert found["CoSA", "COCO val", "true_labels"] == 51.0
    assert found["CoSA-MS", "VOC val", "unstated"] == 81.4
    assert found["CoSA-MS", "COCO val", "unstated"] == 53.7
    logs = {(r.split, r.protocol): r.miou for r in PUBLISHED if "released log" in r.run}
    assert logs == {
        ("val", "unfiltered"): 73.7,
        ("val", "true_labels"): 75.7,
        ("val_part", "unfiltered"): 48.5,
    }


def test_other_methods_headline_numbers_are_after_their_crf():
    others = [r for r in PUBLISHED if not r.run.startswith("CoSA")]
    for result in others:
        assert (result.protocol == "unfiltered_crf") == ("CRF" in result.evaluation), result
    plain = {(r.run, r.miou) for r in others if r.protocol == "unfiltered" and ONE_VIEW not in r.evaluation}
    assert plain == {("WeCLIP", 74.9)}
    views = {(r.run, r.backbone): r.miou for r in others if ONE_VIEW in r.evaluation}
    assert sorted(views.values()) == [69.2, 69.9, 70.4, 72.1, 72.2, 75.6]


def test_every_result_is_complete_and_none_occurs_twice():
    keys = [(r.run, r.backbone, r.dataset, r.split, r.protocol, r.evaluation) for r in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert all(r.source and r.backbone and 20 < r.miou < 95 and r.year > 2022 for r in PUBLISHED)
    assert all(r.evaluation or r.protocol in ("server", "unstated") for r in PUBLISHED)


@pytest.mark.parametrize(
    ("evaluation", "crf", "bare"),
    [
        ("448 square, 5 scales + mirror", "released CRF", []),
        (UNKNOWN, "released CRF", ["unfiltered", "unfiltered_crf"]),
        ("448 square, 5 scales + mirror", f"CRF: {UNKNOWN}", ["unfiltered_crf"]),
    ],
)
def test_where_the_settings_are_unknown_no_published_row_stands_beside(evaluation, crf, bare):
    metrics = {f"final/online/miou_{protocol}": 70.0 for protocol in ("unfiltered", "unfiltered_crf")}
    tags = {"image_set": "aaaaaaaabbbb", "benchmark": "VOC val", "evaluated_images": "1449", "classes": "20"}
    run = RunRecord("a", "a", "cosa", "FINISHED", metrics, tags, evaluation=evaluation, crf=crf)
    tables = [table for table in leaderboard([run]) if table.runs]
    assert len(tables) == 2
    assert [t.protocol for t in tables if not any(row.published for row in t.rows)] == bare
