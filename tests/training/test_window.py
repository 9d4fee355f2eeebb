"""The window of losses: means, and the step and samples of a loss that is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from cosa_dist.training.window import LossWindow, NonFiniteLossError, check_weights


@dataclass
class Named:
    """As much of a batch as the window reads."""

    ids: list[str]


def filled(*totals: float) -> LossWindow:
    window = LossWindow()
    for number, total in enumerate(totals):
        terms = {"classification": torch.tensor(1.0), "total": torch.tensor(total)}
        window.add(terms, [Named([f"a{number}"]), Named([f"b{number}"])])
    return window


def test_means_over_the_steps():
    assert filled(1.0, 2.0, 6.0).means(9) == {"classification": 1.0, "total": 3.0}
    assert filled(1.0, 2.0).steps == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_broken_step_is_named_with_its_own_samples(value):
    with pytest.raises(NonFiniteLossError) as caught:
        filled(1.0, 2.0, value, value, 5.0).means(last_step=20)
    text = str(caught.value)
    assert text == "step 18: total not finite; samples of rank 0: a2, b2; the last checkpoint is kept"


def test_weights_that_are_not_finite_are_refused_by_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    check_weights(network, 3)
    with torch.no_grad():
        network[1].weight[0, 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"step 4: weights of 1\.weight not finite"):
        check_weights(network, 4)
