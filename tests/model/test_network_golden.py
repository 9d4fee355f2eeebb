"""The network against outputs and gradients of the released code, with weights made by a rule."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from cosa_dist.config.method import ModelConfig
from cosa_dist.model.build import build_network
from cosa_dist.model.network import CosaNetwork

TINY = {
    "img_size": 64,
    "patch_size": 16,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 4,
}


def released_name(name: str) -> str:
    return name.replace("backbone.model.", "encoder.")


def rule_weights(network: CosaNetwork) -> None:
    """Fill the network by the rule that the reference numbers were made with."""
    state = {}
    for name, value in network.state_dict().items():
        key = released_name(name)
        shape = value.shape
        drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
        weight = drawn.astype("f4") * np.float32(0.02)
        if "norm" in key and key.endswith("weight"):
            weight = 1 + 5 * weight
        state[name] = torch.from_numpy(np.asarray(weight, dtype="f4"))
    network.load_state_dict(state)


def tiny_network(aux_layer: int) -> CosaNetwork:
    config = ModelConfig(
        backbone="vit_tiny_patch16_224",
        weights="none",
        backbone_options=TINY,
        aux_layer=aux_layer,
    )
    network = build_network(config, classes=5, seed=0)
    rule_weights(network)
    return network


def test_outputs_and_gradients_equal_the_released_networks(golden):
    reference = golden("vitnetwork_tiny_aux-3")
    network = tiny_network(-3).eval()
    output = network(torch.from_numpy(reference["in_x"]))
    named = {
        "cls": output.logits,
        "cls_aux": output.aux_logits,
        "feat": output.features,
        "seg": output.segmentation,
        "cam": output.cam,
        "cam_aux": output.aux_cam,
    }
    for key, value in named.items():
        np.testing.assert_allclose(
            value.detach().numpy(), reference[f"out_{key}"], rtol=1e-4, atol=2e-5, err_msg=key
        )
    loss = (
        (output.logits**2).sum()
        + (output.aux_logits**2).sum()
        + (output.segmentation**2).sum()
        + (output.cam**2).mean()
        + (output.aux_cam**2).mean()
    )
    loss.backward()
    checked = 0
    for name, parameter in network.named_parameters():
        key = f"grad_none/{released_name(name)}"
        if key in reference:
            np.testing.assert_allclose(
                parameter.grad.numpy(), reference[key], rtol=2e-3, atol=1e-5, err_msg=key
            )
            checked += 1
    assert checked == 7
