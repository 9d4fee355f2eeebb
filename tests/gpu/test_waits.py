"""Where the host waits for the GPU in a step, by CUDA's own account."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.benchmark.gpu import WAITS_ALLOWED, fresh, host_waits
from cosa_dist.benchmark.workload import phase_steps
from tests.benchmark.tiny_run import tiny_config

KINDS = {
    "fixed pair": {},
    "fixed single": {"assignment": {"threshold": {"kind": "fixed_single"}}},
    "two components": {
        "assignment": {"threshold": {"kind": "two_components", "queue": 4}, "reliability": True}
    },
    "three components": {"assignment": {"threshold": {"kind": "three_components", "queue": 4}}},
    "separation": {"losses": {"warmup_steps": 2, "separation": 0.1}},
    "activation checkpointing": {"training": {"activation_checkpointing": True}},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro", [0, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_no_more_than_allowed(device, kind, micro, precision):
    config = tiny_config(**KINDS[kind])
    config = config.model_copy(update={
        "training": config.training.model_copy(update={"micro_batch_size": micro, "precision": precision})
    })  # fmt: skip
    with fresh(config, device) as work:
        for phase, step in phase_steps(config).items():
            for _ in range(3):
                work.take(step, device)
            with host_waits() as found:
                work.take(step, device)
            assert sum(found.values()) <= WAITS_ALLOWED[phase] * work.parts, (phase, found)


def test_a_wait_is_seen(cuda):
    """Calibration: without it, the test above would pass with a mode that reports nothing."""
    value = torch.ones(3, device=cuda)
    with host_waits() as found:
        value.sum().item()
    assert sum(found.values()) == 1
