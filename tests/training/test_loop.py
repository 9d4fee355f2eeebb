"""Decisions that all ranks share, and what a step may change before the optimiser's step."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.tracking.tracker import NullTracker
from cosa_dist.training import flops, loop
from cosa_dist.training.checkpoint import CheckpointWriter
from cosa_dist.training.loop import TrainingContext, TrainingStoppedError, _agree, run_training
from cosa_dist.training.state import build_state, make_accelerator
from cosa_dist.training.step import training_step
from tests.benchmark.tiny_run import tiny_config
from tests.support.ranks import run_ranks
from tests.training.test_checkpoint import learning_state


def _ask(index: int, folder: str) -> None:
    """Ask with different clocks and files on both ranks, and note the answers."""
    config = tiny_config(training={"checkpoint_minutes": 10})
    state = cast(Any, SimpleNamespace(config=config))
    writer = CheckpointWriter(Path(folder), keep=1)
    answers = []
    for stopped, late in ((None, None), (0, None), (1, None), (None, 0), (None, 1)):
        context = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device("cpu")),
            stop_requested=lambda stopped=stopped: index == stopped,
        )
        writer.saved_at = time.monotonic() - (601 if index == late else 500)
        answers.append(_agree(state, cast(TrainingContext, context), writer, 0.2 + 0.4 * index))
    torch.save(answers, Path(folder) / f"{index}.pt")

    thresholds = learning_state().thresholds
    with torch.no_grad():
        thresholds._values += 0.1 * index
        thresholds._mixture.mean[:] = 0.5 + index
        thresholds._usable[index] = False
    thresholds.align()
    torch.save(thresholds.state_dict(), Path(folder) / f"thresholds{index}.pt")


def test_every_rank_stops_and_saves_where_one_does(tmp_path):
    run_ranks(_ask, 2, str(tmp_path))
    for index in range(2):
        quiet, own, other, due, late = torch.load(tmp_path / f"{index}.pt", weights_only=True)
        assert quiet[:2] == (False, False)
        assert own[:2] == other[:2] == (True, False)  # a stop file that only one node sees counts
        assert due[:2] == (False, True)
        assert late[:2] == (False, False)  # only the clock of rank 0 counts
        assert {round(answer[2], 6) for answer in (quiet, own, other, due, late)} == {0.4}
    ours, others = (torch.load(tmp_path / f"thresholds{index}.pt", weights_only=True) for index in range(2))
    assert all(torch.equal(value, others[key]) for key, value in ours.items())
    assert ours["usable"].tolist() == [False, True]
    assert ours["mixture_mean"].unique().tolist() == [0.5]
    assert ours["thresholds"].dtype == torch.float32


def test_aligning_changes_nothing_on_one_rank():
    thresholds = learning_state().thresholds
    before = {key: value.clone() for key, value in thresholds.state_dict().items()}
    thresholds.align()
    assert all(torch.equal(value, before[key]) for key, value in thresholds.state_dict().items())


@pytest.mark.parametrize("kind", ["cosa", "segmenter", "stepping in the backward pass"])
def test_a_step_changes_weights_and_moments_with_the_optimiser_and_not_before(kind, monkeypatch):
    settings = {"supervision": "truth", "losses": {"warmup_steps": 0}}
    config = build_config(merge(read_recipe("tiny_ms"), settings)) if kind == "segmenter" else None
    sparing = kind.startswith("stepping")
    monkeypatch.setattr("cosa_dist.training.optimizer.STEP_EVERY", 10_000)
    config = config or tiny_config(losses={"warmup_steps": 0}, training={"activation_checkpointing": sparing})
    accelerator = make_accelerator("fp32", 1, cpu=True)
    state = build_state(config, 3, accelerator.device)
    network, state.optimizer = accelerator.prepare(state.online, state.optimizer)
    network.train()
    batch = generated_batch(2, 32, 3)
    batch = replace(batch, masks=torch.ones(2, 32, 32, dtype=torch.uint8))
    training_step(state, network, [batch], accelerator)  # from here on there are moments

    def kept() -> list[torch.Tensor]:
        moments = [tensor for values in state.optimizer.state.values() for tensor in values.values()]
        return [*state.online.parameters(), *state.assignment.parameters(), *moments]

    before, found = [tensor.detach().clone() for tensor in kept()], []

    def compare(*_: object) -> None:
        found.append(all(torch.equal(one, other) for one, other in zip(kept(), before, strict=True)))

    state.optimizer.optimizer.register_step_pre_hook(compare)
    training_step(state, network, [batch], accelerator)
    assert found[0]
    assert (len(found) > 1) is sparing
    assert not all(torch.equal(one, other) for one, other in zip(kept(), before, strict=True))


def test_operations_of_both_phases_are_counted_before_the_clock_of_the_steps_starts(tmp_path, monkeypatch):
    counted: list[int] = []

    def window() -> Any:
        counted.append(flops._image_operations.cache_info().misses)
        return real()

    real = loop.LossWindow
    monkeypatch.setattr(loop, "LossWindow", window)
    flops._image_operations.cache_clear()
    accelerator = make_accelerator("fp32", 1, cpu=True)
    config = tiny_config(losses={"warmup_steps": 1}, training={"log_every": 1, "steps": 4})
    state = build_state(config, 3, accelerator.device)
    network, state.optimizer = accelerator.prepare(state.online, state.optimizer)
    context = TrainingContext(
        *(accelerator, NullTracker(), tmp_path, lambda state, last: ({}, {})),
        stop_requested=lambda: state.step == 3,
    )
    with pytest.raises(TrainingStoppedError, match="after step 3"):
        run_training(state, network, [[generated_batch(2, 32, 3)]] * 4, context)
    assert counted == [2, 2, 2, 2]
