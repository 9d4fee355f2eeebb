"""Published rows: what they say, and beside which runs they stand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.reports.leaderboard import ONE_VIEW, PUBLISHED, UNKNOWN, RunRecord, leaderboard

VOC_VAL = {"image_set": "aaaaaaaabbbb", "benchmark": "VOC val", "evaluated_images": "1449", "classes": "20"}


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
        (UNKNOWN, "released CRF", ["true_labels", "true_labels_crf"]),
        ("448 square, 5 scales + mirror", f"CRF: {UNKNOWN}", ["true_labels_crf"]),
    ],
)
def test_where_the_settings_are_unknown_no_published_row_stands_beside(evaluation, crf, bare):
    metrics = {f"final/online/miou_{protocol}": 70.0 for protocol in ("true_labels", "true_labels_crf")}
    run = RunRecord("a", "a", "cosa", "FINISHED", metrics, VOC_VAL, evaluation=evaluation, crf=crf)
    tables = [table for table in leaderboard([run]) if table.runs]
    assert len(tables) == 2
    assert [t.protocol for t in tables if not any(row.published for row in t.rows)] == bare


def test_named_protocols_are_shown_in_the_words_of_runs():
    rows = {(r.run, r.backbone, r.benchmark, r.protocol): r.evaluation for r in PUBLISHED}
    expected = "own size, scales 1 1.25 1.5 + mirror, maximum, CRF 10 iterations 1/1 121/5/4"
    assert rows["DuPL", "ViT-B", "VOC val", "unfiltered_crf"] == expected
    weclip = "longer side 512, scales 0.75 1 + mirror, mean, merged at the grid"
    assert rows["WeCLIP", "CLIP ViT-B", "VOC val", "unfiltered"] == weclip
    assert (
        rows["WeCLIP", "CLIP ViT-B", "VOC val", "unfiltered_crf"] == f"{weclip}, CRF 10 iterations 3/3 64/5/4"
    )
    assert rows["CoSA", "ViT-B", "VOC val", "true_labels"] == "448 square, 5 scales + mirror"
    # A mistyped name would stand as text.
    assert not [text for text in rows.values() if text and " " not in text]


def test_beside_a_run_under_another_methods_protocol_stand_the_methods_that_use_it():
    toco = EvaluationConfig(protocol="toco")
    metrics = {"final/online/miou_unfiltered": 69.0, "final/online/miou_unfiltered_crf": 72.0}
    words = {"evaluation": toco.words, "crf": toco.crf.words}
    run = RunRecord("ours", "ours", "cosa", "FINISHED", metrics, VOC_VAL, **words)
    tables = {item.protocol: item for item in leaderboard([run]) if item.runs}
    assert [row.run for row in tables["unfiltered"].rows] == ["ours"]
    assert [row.run for row in tables["unfiltered_crf"].rows] == ["DuPL", "DuPL", "ours", "ToCo", "ToCo"]
    # ToCo's logits after another CRF are another protocol.
    other = replace(run, crf="CRF 10 iterations 1/3 67/3/4")
    assert not any(row.published for item in leaderboard([other]) if item.runs for row in item.rows)
