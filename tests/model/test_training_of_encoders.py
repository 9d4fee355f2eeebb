"""The whole training step with each kind of encoder: assignments, all losses, both networks move."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from cosa_dist.config.loading import build_config
from cosa_dist.data.reading.loader import Batch
from cosa_dist.training.state import build_state, make_accelerator
from cosa_dist.training.step import assign, training_step
from tests.model.tiny_encoders import tiny_model_config

SIDE = 64


@pytest.fixture(autouse=True)
def accelerate_starts_anew():
    """Accelerate keeps its precision for the whole process unless reset."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def batch() -> Batch:
    drawn = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=drawn, dtype=torch.uint8)
    return Batch(
        ids=["a", "b"],
        positions=torch.tensor([0, 1]),
        weak=images,
        strong=images,
        labels=torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]),
        boxes=torch.tensor([[0, SIDE, 0, SIDE], [8, SIDE, 0, 48]]),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["vit", "swin", "resnet", "convnext"])
def test_a_step_of_the_co_training_moves_every_parameter(kind, precision):
    config = build_config(
        {
            "model": tiny_model_config(kind).model_dump(mode="json"),
            "assignment": {"momentum": 0.5, "scales": [1.0, 0.5, 1.5]},
            "losses": {"warmup_steps": 0},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0},
            "training": {"steps": 4, "global_batch_size": 2, "precision": precision},
            "data": {"crop_size": SIDE},
        }
    )
    state = build_state(config, classes=3, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in state.online.named_parameters()}
    accelerator = make_accelerator(precision, 1, cpu=True)
    assert assign(state, batch(), accelerator).cam_pseudo_label.shape == (2, SIDE, SIDE)
    terms = training_step(state, state.online, [batch()], accelerator)
    assert all(torch.isfinite(value) for value in terms.values())
    assert float(terms["cam_to_seg"]) > 0
    assert float(terms["seg_to_cam"]) > 0
    moved = dict(state.online.named_parameters())
    assert [n for n, p in moved.items() if p.grad is None or torch.equal(p, before[n])] == []
    for name, own in state.assignment.named_parameters():
        torch.testing.assert_close(own, (before[name] + moved[name]) / 2)
