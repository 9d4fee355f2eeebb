"""The tally's counts for a grid of background thresholds, by hand."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.evaluation.evaluator import Tally, choose_background
from cosa_dist.evaluation.report import as_text


def test_a_value_at_a_threshold_of_the_grid_is_background():
    tally = Tally(("a", "b"), EvaluationConfig(), torch.device("cpu"), grid=(0.5, 0.25))
    value = torch.tensor([[0.1, 0.25, 0.3, 0.5, 0.9]])
    strongest = torch.tensor([[1, 1, 1, 2, 2]])
    mask = torch.tensor([[0, 0, 1, 2, 255]], dtype=torch.uint8)
    tally.add_activation(value, strongest, mask)
    tally.add_image("x", torch.zeros(2), torch.zeros(2), torch.ones(2))
    found = tally.report("online").cam_miou_by_background
    # At 0.25 all four counted pixels are right; at 0.5 all of them are background.
    assert list(found) == [0.25, 0.5]
    assert found[0.25] == 100
    assert found[0.5] == pytest.approx(100 * (2 / 4 + 0 + 0) / 3)


@pytest.mark.parametrize("values", [[255, 255, 255], [0, 0, 0], [0, 255, 0]])
def test_masks_without_a_class_give_no_score_and_no_metric(values):
    tally = Tally(("a",), EvaluationConfig(), torch.device("cpu"), grid=(0.5,))
    mask = torch.tensor([values], dtype=torch.uint8)
    tally.add_image("x", torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tally.add_prediction("unfiltered", torch.zeros(1, 3, dtype=torch.int64), mask, None)
    tally.add_activation(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.int64), mask)
    report = tally.report("online")
    assert report.miou() is None
    assert report.map_class is None
    assert report.metrics() == {"online/images": 1.0}
    assert report.without_score() == "no class occurs in the masks (only background or ignored pixels)"
    assert "no scores: no class occurs in the masks" in " ".join(as_text([report], width=200).split())
    with pytest.raises(ValueError, match="on masks in which a class occurs"):
        choose_background(report)


def test_images_without_masks_give_no_score_for_another_reason():
    tally = Tally(("a",), EvaluationConfig(), torch.device("cpu"))
    tally.skipped += 1
    assert tally.report("online", masks_needed=False).without_score() == "no image has a mask"


def test_a_prediction_of_no_class_is_refused_with_the_report():
    tally = Tally(("a",), EvaluationConfig(), torch.device("cpu"))
    mask = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    tally.add_image("x", torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tally.add_prediction("unfiltered", torch.tensor([[0, 1, 7]]), mask, None)
    assert tally.report("online").scores["unfiltered"].miou == 100
    tally.add_prediction("unfiltered", torch.tensor([[0, 2, 0]]), mask, None)
    with pytest.raises(ValueError, match="1 pixels are predicted as no class"):
        tally.report("online")
