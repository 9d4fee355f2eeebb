"""The plain step and ours end at the same networks, in the loss warm-up and in co-training."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.benchmark.workload import generated_batch, prepare
from cosa_dist.config.errors import ConfigError
from cosa_dist.training.step import training_step
from tests.benchmark.tiny_run import tiny_config
from tests.oracles.plain_step import plain_step

CPU = torch.device("cpu")
TERMS = ("cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy")


@pytest.mark.parametrize("views", [{}, {"flip": False, "scales": [1.0]}], ids=["every view", "one view"])
def test_both_steps_lead_to_the_same_networks(views):
    config = tiny_config(assignment=views)
    ours, plain = (prepare(config, CPU) for _ in range(2))
    start = ours.state.online.decoder.conv8.weight.detach().clone()
    for step in range(5):
        batch = generated_batch(4, 32, 20, seed=step)
        found = training_step(ours.state, ours.network, [batch], ours.accelerator)
        expected = plain_step(plain.state, batch)
        for name in ("classification", "aux_classification", "total", *(TERMS if step >= 2 else ())):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)
        assert all(expected[name] != 0 for name in TERMS)
    for kind in ("online", "assignment"):
        mine, theirs = (dict(getattr(w.state, kind).named_parameters()) for w in (ours, plain))
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=2e-3, atol=2e-4, msg=f"{kind} {name}")
    moved = (ours.state.online.decoder.conv8.weight - start).abs().mean()
    error = (ours.state.online.decoder.conv8.weight - plain.state.online.decoder.conv8.weight).abs().mean()
    assert error < 0.01 * moved


def test_the_plain_step_leaves_the_switches_as_they_were():
    work = prepare(tiny_config(), CPU)
    plain_step(work.state, generated_batch(4, 32, 20))
    assert all(block.attn.fused_attn for block in work.state.online.backbone.model.blocks)
    assert all(group["fused"] for group in work.state.optimizer.param_groups)
    assert work.state.step == 1


@pytest.mark.parametrize(
    "change",
    [
        {"assignment": {"threshold": {"kind": "two_components"}}},
        {"assignment": {"reliability": True}},
        {"losses": {"separation": 0.1}},
        {"training": {"micro_batch_size": 2}},
        {"kind": "control"},
    ],
)
def test_what_the_released_code_has_not_is_refused(change):
    work = prepare(tiny_config(**change), CPU)
    with pytest.raises(ConfigError, match="the plain step has no"):
        plain_step(work.state, generated_batch(4, 32, 20))
