"""Threshold pairs and the fixed source."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.threshold import FixedPair, ThresholdPair, ThresholdSource


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.25), (-0.1, 0.5), (0.2, 1.5), (0.1, float("nan"))])
def test_impossible_pairs_are_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        ThresholdPair(low=low, high=high)


def test_tensors_are_taken_without_reading_them():
    pair = ThresholdPair(low=torch.tensor(0.3, device="meta"), high=0.7)
    assert pair.high == 0.7


def test_fixed_pair_never_moves():
    source: ThresholdSource = FixedPair(low=0.25, high=0.7)
    source.update(torch.rand(2, 8, 8), torch.tensor([[0, 8, 0, 8]] * 2))
    assert source.current() == ThresholdPair(0.25, 0.7)
    assert not source.learns


def test_fixed_pair_has_no_state_and_refuses_a_foreign_one():
    source = FixedPair(low=0.25, high=0.7)
    assert source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(ValueError, match="histogram"):
        source.load_state_dict({"histogram": torch.zeros(3)})
