"""Several ranks: a resumed run's sums equal the undisturbed one's, and idle parameters are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.collective import world_size
from cosa_dist.training.checkpoint import restore, save_checkpoint
from cosa_dist.training.state import TrainState, build_state, make_accelerator, wrap_online
from cosa_dist.training.step import training_step
from tests.benchmark.tiny_run import tiny_config
from tests.support.ranks import run_ranks


def begin(settings: dict[str, Any], **precision: bool) -> tuple[TrainState, nn.Module, Any]:
    """A fresh state of the tiny run, as every rank wraps it."""
    accelerator = make_accelerator("fp32", world_size(), True, **precision)
    state = build_state(tiny_config(**settings), 3, accelerator.device)
    return state, wrap_online(state, accelerator).train(), accelerator


def take(run: tuple[TrainState, nn.Module, Any], steps: int, index: int) -> list[float]:
    """Take steps with one image of this rank each; the gradients' norms."""
    state, network, accelerator = run
    norms = []
    for _ in range(steps):
        batch = generated_batch(1, 32, 3, seed=10 * state.step + index)
        norms.append(float(training_step(state, network, [batch], accelerator)["gradient_norm"]))
    return norms


def _resume(index: int, folder: str) -> None:
    settings = {"losses": {"warmup_steps": 2}}
    straight = begin(settings)
    norms = take(straight, 4, index)
    first = begin(settings)
    norms_of_parts = take(first, 3, index)
    path = save_checkpoint(first[0], Path(folder) / f"{index}", keep=1)
    resumed = begin({**settings, "seed": 1})
    restore(resumed[0], path)
    norms_of_parts += take(resumed, 1, index)
    pairs = zip(resumed[0].online.parameters(), straight[0].online.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    torch.save((norms, norms_of_parts, same), Path(folder) / f"{index}.pt")


def test_a_resumed_run_of_three_ranks_equals_the_undisturbed_one_bit_for_bit(tmp_path):
    run_ranks(_resume, 3, str(tmp_path))
    results = [torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(3)]
    for norms, parts, same in results:
        assert norms == parts == results[0][0]
        assert same


IDLE = {
    "warm-up": {"losses": {"warmup_steps": 5, "zero_gradients_in_warmup": False}},
    "weights of zero": {"losses": {"warmup_steps": 0, "cam_to_seg": 0.0, "energy": 0.0}},
    "all at work": {"losses": {"warmup_steps": 0}},
}


def _idle(index: int, folder: str) -> None:
    found = {}
    for name, settings in IDLE.items():
        losses = {"zero_gradients_in_warmup": False, **settings["losses"]}
        run = begin({"losses": losses})
        take(run, 2, index)
        state = run[0]
        without = [
            key for key, value in state.online.named_parameters() if value not in state.optimizer.state
        ]
        found[name] = (without, [value.detach().clone() for value in state.online.parameters()])
    torch.save(found, Path(folder) / f"{index}.pt")


def one_rank(settings: dict[str, Any], folder: Path) -> list[Tensor]:
    """The same steps in this process, both ranks' images one after the other."""
    losses = {"zero_gradients_in_warmup": False, **settings["losses"]}
    state, network, accelerator = begin({"losses": losses})
    for step in range(2):
        batches = [generated_batch(1, 32, 3, seed=10 * step + index) for index in range(2)]
        training_step(state, network, batches, accelerator)
    return list(state.online.parameters())


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idle")
    run_ranks(_idle, 2, str(folder))
    return folder


@pytest.mark.parametrize("name", IDLE)
def test_what_no_loss_reaches_is_not_trained_and_the_rest_is_as_on_one_rank(idle, name):
    ranks = [torch.load(idle / f"{index}.pt", weights_only=True)[name] for index in range(2)]
    decoder = [f"decoder.conv{number}.weight" for number in (6, 7, 8)]
    assert [rank[0] for rank in ranks] == 2 * [[] if name == "all at work" else decoder]
    alone = one_rank(IDLE[name], idle)
    for ours, others, expected in zip(ranks[0][1], ranks[1][1], alone, strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def _in_bf16(index: int, folder: str) -> None:
    norms = [
        take(begin({"losses": {"warmup_steps": 0}}, bf16_gradients=half), 1, index)[0] for half in (0, 1)
    ]
    torch.save(norms, Path(folder) / f"{index}.pt")


def test_gradients_can_be_exchanged_in_bf16(tmp_path):
    run_ranks(_in_bf16, 2, str(tmp_path))
    (exact, rounded), other = (torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(2))
    assert other == [exact, rounded]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
