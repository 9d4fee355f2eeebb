from __future__ import annotations

import pytest

from cosa_dist.tracking.published import PUBLISHED, published_results


def test_numbers_of_the_method_stand_under_their_protocol():
    found = {(r.method, r.dataset, r.protocol): r.miou for r in PUBLISHED}
    assert found["CoSA + CRF", "VOC", "true_labels"] == 76.4
    assert found["CoSA", "VOC", "true_labels"] == 76.2
    assert found["CoSA + CRF", "COCO", "true_labels"] == 51.1
    assert found["CoSA", "COCO", "true_labels"] == 51.0
    assert found["CoSA-MS", "VOC", "unstated"] == 81.4
    assert found["CoSA-MS", "COCO", "unstated"] == 53.7
    unfiltered = [r.miou for r in PUBLISHED if "released log" in r.method]
    assert unfiltered == [73.7, 48.5]


def test_every_result_is_complete_and_none_occurs_twice():
    keys = [(r.method, r.dataset, r.split, r.protocol) for r in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert all(r.source and r.backbone and 20 < r.miou < 95 for r in PUBLISHED)


@pytest.mark.parametrize("name", ["VOC-mini", "VOC mini", "coco-mini", "demo", "", "VOC2007"])
def test_other_data_sets_have_no_published_result(name):
    assert published_results(name) == []


def test_results_come_best_first_and_only_of_the_split():
    scores = [r.miou for r in published_results("voc")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 5
    assert published_results("VOC", "train") == []
