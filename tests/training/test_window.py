"""The window of losses: means, and the step and samples of a loss that is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from cosa_dist.training.window import LossWindow, NonFiniteLossError, check_weights, timed
from tests.support.ranks import run_ranks


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


def test_gradients_that_are_not_finite_blame_the_samples_of_all_ranks():
    window = LossWindow()
    window.add({"total": torch.tensor(1.0), "gradient_norm": torch.tensor(float("inf"))}, [Named(["a"])])
    with pytest.raises(NonFiniteLossError, match="gradient_norm not finite; samples of rank 0: a; the"):
        window.means(3)


def _broken_on_one(index: int, folder: str) -> None:
    window, nan = LossWindow(), torch.tensor(float("nan"))
    terms = {"total": nan if index == 1 else torch.tensor(1.0), "gradient_norm": nan}
    window.add(terms, [Named([f"of {index}"])])
    try:
        window.means(1)
    except NonFiniteLossError as error:
        (Path(folder) / f"{index}.txt").write_text(str(error))


def test_a_rank_whose_own_terms_are_finite_is_not_named_for_the_gradients_of_all(tmp_path):
    run_ranks(_broken_on_one, 2, str(tmp_path))
    for index in range(2):
        said = (tmp_path / f"{index}.txt").read_text()
        assert "total, gradient_norm not finite; samples of rank 1: of 1; the last" in said


def test_waiting_for_a_loader_is_timed_and_nothing_else(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cosa_dist.training.window.time.perf_counter", lambda: now[0])

    def loader():
        for item in "ab":
            now[0] += 2.0
            yield item

    found = []
    for waited, item in timed(loader()):
        found.append((waited, item))
        now[0] += 7.0
    assert found == [(2.0, "a"), (2.0, "b")]


def test_huge_weights_are_finite_though_their_norm_is_not():
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.fill_(1e30)
    assert not network.weight.norm().isfinite()
    check_weights(network, 3)


def test_weights_that_are_not_finite_are_refused_by_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    check_weights(network, 3)
    with torch.no_grad():
        network[1].weight[0, 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"step 4: weights of 1\.weight not finite"):
        check_weights(network, 4)
