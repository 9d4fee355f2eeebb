"""Thresholds, and the source that never changes."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.threshold import (
    FixedThresholds,
    SingleThreshold,
    ThresholdPair,
    Thresholds,
    ThresholdSource,
    threshold_values,
)

PAIR = ThresholdPair(low=0.25, high=0.7)


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.25), (-0.1, 0.5), (0.2, 1.5), (0.1, float("nan"))])
def test_impossible_pairs_are_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        ThresholdPair(low=low, high=high)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_impossible_borders_are_refused(value):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        SingleThreshold(value)


def test_tensors_are_taken_without_reading_them():
    number = torch.tensor(0.3, device="meta")
    assert ThresholdPair(low=number, high=0.7).high == 0.7
    assert SingleThreshold(number).low is number
    assert SingleThreshold(number).high is number


def test_fixed_thresholds_never_move():
    source: ThresholdSource = FixedThresholds(PAIR, SingleThreshold(0.5))
    source.update(torch.ones(2, 10))
    assert source.current() == Thresholds(PAIR, SingleThreshold(0.5))
    assert source.notices() == []
    assert not source.learns


def test_fixed_thresholds_have_no_state_and_refuse_a_foreign_one():
    source = FixedThresholds(PAIR, PAIR)
    assert source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(ValueError, match="queue"):
        source.load_state_dict({"queue": torch.zeros(3)})


def test_values_are_plain_numbers_by_name():
    single = SingleThreshold(torch.tensor(0.5))
    assert threshold_values(Thresholds(single, single)) == {"threshold": 0.5, "aux_threshold": 0.5}
    assert threshold_values(Thresholds(PAIR, ThresholdPair(0.5, torch.tensor(0.75)))) == {
        "threshold_low": 0.25,
        "threshold_high": 0.7,
        "threshold_aux_low": 0.5,
        "threshold_aux_high": 0.75,
    }
