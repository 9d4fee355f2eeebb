"""Six whole training steps against the released code's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosa_dist.config.loading import build_config
from cosa_dist.data.reading.loader import Batch
from cosa_dist.model.network import copy_network
from cosa_dist.training.optimizer import build_optimizer
from cosa_dist.training.state import TrainState, make_accelerator
from cosa_dist.training.step import assign, training_step
from tests.model.test_network_golden import TINY, tiny_network

UNUSED_HEAD = 1541.4 * 0  # the released sums include a head that this network does not have

CONFIG = {
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "weights": "none",
        "backbone_options": TINY,
        "aux_layer": -2,
    },
    "assignment": {"momentum": 0.9, "aux_cam_last_scale_only": True},
    "losses": {"warmup_steps": 2},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
    "training": {"steps": 8, "global_batch_size": 2, "precision": "fp32"},
    "data": {"crop_size": 64},
}


def fixed_state() -> TrainState:
    """Both networks filled by the rule of the reference, heads scaled as its index says."""
    online = tiny_network(-2)
    with torch.no_grad():
        for head in (online.classifier, online.aux_classifier):
            head.weight.mul_(5)
        online.decoder.conv6.weight.mul_(2)
        online.decoder.conv7.weight.mul_(2)
        online.decoder.conv8.weight.mul_(10)
    config = build_config(CONFIG)
    return TrainState(config, online, copy_network(online), build_optimizer(online, config.optimizer))


def batch_of(reference: dict[str, np.ndarray], step: int) -> Batch:
    def images(name: str) -> torch.Tensor:
        return torch.from_numpy(reference[f"in_{name}_u8_{step}"]).permute(0, 3, 1, 2).contiguous()

    return Batch(
        ids=["a", "b"],
        positions=torch.tensor([2 * step, 2 * step + 1]),
        weak=images("weak"),
        strong=images("strong"),
        labels=torch.from_numpy(reference[f"in_label_{step}"]),
        boxes=torch.from_numpy(reference[f"in_box_{step}"].astype("int64")),
    )


def test_six_steps_equal_the_released_ones(golden):
    reference = golden("train_steps_fixed")
    rows = reference["out_rows"]
    state = fixed_state()
    accelerator = make_accelerator("fp32", 1, cpu=True)
    for step in range(6):
        batch = batch_of(reference, step)
        assignment = assign(state, batch, accelerator)
        terms = training_step(state, state.online, [batch], accelerator)
        mine = {name: float(value) for name, value in terms.items()}
        row = rows[step]
        np.testing.assert_allclose(mine["classification"], row[1], rtol=1e-4)
        np.testing.assert_allclose(mine["aux_classification"], row[2], rtol=1e-4)
        if step >= 2:
            np.testing.assert_allclose(mine["total"], row[0], rtol=1e-4)
            np.testing.assert_allclose(mine["cam_to_seg"], row[3], rtol=1e-4)
            np.testing.assert_allclose(mine["aux_cam_to_seg"], row[4], rtol=1e-4)
            np.testing.assert_allclose(mine["seg_to_cam"], row[5], rtol=1e-4)
            np.testing.assert_allclose(mine["energy"], row[6], rtol=3e-3)
        main, auxiliary = assignment.cam_pseudo_label.numpy(), assignment.aux_cam_pseudo_label.numpy()
        assert (main != reference[f"out_label_main_{step}"]).mean() < 1e-3
        assert (auxiliary != reference[f"out_label_aux_{step}"]).mean() < 1e-3
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(row[11], rel=1e-6)
        assert state.optimizer.param_groups[2]["lr"] == pytest.approx(row[12], rel=1e-6)
    named = {
        "cls_ON": state.online.classifier.weight,
        "cls_AN": state.assignment.classifier.weight,
        "conv8_ON": state.online.decoder.conv8.weight,
        "norm_ON": state.online.backbone.model.norm.weight,
        "qkvb_ON": state.online.backbone.model.blocks[0].attn.qkv.bias,
    }
    for name, value in named.items():
        np.testing.assert_allclose(
            value.detach().numpy(),
            reference[f"out_final_{name}"],
            rtol=2e-3,
            atol=2e-5,
            err_msg=name,
        )
