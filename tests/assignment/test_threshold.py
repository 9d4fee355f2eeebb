"""Thresholds, and the source that never changes."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.activation import StrongestClass
from cosa_dist.assignment.threshold import Threshold, Thresholds, ThresholdSource
from cosa_dist.config.method import ThresholdConfig

PAIR = Threshold(low=0.25, high=0.7)


def test_fixed_thresholds_are_the_configured_ones_and_never_move():
    config = ThresholdConfig(kind="fixed_pair", low=0.25, high=0.7, aux_low=0.1, aux_high=0.6)
    source = ThresholdSource(config)
    source.update(torch.ones(2, 10))
    assert source.current() == Thresholds(PAIR, Threshold(0.1, 0.6))
    assert source.notices() == []
    assert not source.learns
    single = ThresholdSource(ThresholdConfig(kind="fixed_single", single=0.5, aux_single=0.4))
    assert single.current() == Thresholds(Threshold(0.5, 0.5, single=True), Threshold(0.4, 0.4, single=True))


def test_a_margin_is_ignored_on_both_sides_of_one_threshold_only():
    single = ThresholdSource(ThresholdConfig(kind="fixed_single", single=0.5, aux_single=0.375, margin=0.125))
    assert single.current() == Thresholds(
        Threshold(0.375, 0.625, single=True), Threshold(0.25, 0.5, single=True)
    )
    assert single.current().values() == {"threshold": 0.5, "aux_threshold": 0.375}
    value = torch.tensor([[[0.3, 0.375, 0.6, 0.625]]])
    strongest = StrongestClass(value, torch.full_like(value, 2, dtype=torch.int64))
    valid = torch.ones_like(value, dtype=torch.bool)
    assert single.current().main.label(strongest, valid).tolist() == [[[0, 255, 255, 2]]]


def test_fixed_thresholds_have_no_state_and_refuse_a_foreign_one():
    source = ThresholdSource(ThresholdConfig())
    assert source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(ValueError, match="queue"):
        source.load_state_dict({"queue": torch.zeros(3)})


def test_values_are_plain_numbers_by_name():
    single = Threshold(torch.tensor(0.5), torch.tensor(0.5), single=True)
    assert Thresholds(single, single).values() == {"threshold": 0.5, "aux_threshold": 0.5}
    assert Thresholds(PAIR, Threshold(0.5, torch.tensor(0.75))).values() == {
        "threshold_low": 0.25,
        "threshold_high": 0.7,
        "threshold_aux_low": 0.5,
        "threshold_aux_high": 0.75,
    }
