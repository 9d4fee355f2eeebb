"""The control: the threshold is chosen on the training images only and applied to the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from colour_network import CLASSES, ColourNetwork, colour_sample
from test_evaluator import PLAIN
from test_report import make_report

from cosa_dist.evaluation.evaluator import Evaluator, choose_background, classification_control


def test_the_best_threshold_and_the_lowest_of_equals():
    report = make_report()
    assert choose_background(report) == (0.35, 42.5)
    equal = replace(report, cam_miou_by_background={0.4: 50.0, 0.2: 50.0, 0.6: 10.0})
    assert choose_background(equal) == (0.2, 50.0)
    with pytest.raises(ValueError, match="cam_background_grid"):
        choose_background(replace(report, cam_miou_by_background={}))


def test_threshold_from_training_is_used_on_validation():
    # The class is the left half; a weaker shade of it lies on the right. In training the shade is
    # background (threshold must be above it), in validation it belongs to the class.
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, :, :4] = 255
    image[0, :, 4:6] = 128
    narrow, wide = torch.zeros(2, 8, 8, dtype=torch.uint8)
    narrow[:, :4] = 1
    wide[:, :6] = 1
    result = classification_control(
        ColourNetwork(),
        [colour_sample("a", image, narrow, [1])],
        [colour_sample("b", image, wide, [1])],
        Evaluator(CLASSES, PLAIN),
    )
    assert result.background == 0.55
    assert result.training_miou == 100.0
    # Background: 16 of 32 pixels; class: 32 of 48.
    assert result.validation_miou == pytest.approx(100 * (16 / 32 + 32 / 48) / 2)
