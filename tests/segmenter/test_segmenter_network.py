"""The segmenter: grids, gradients, norms, image logits, and where its weights come from."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cosa_dist.config.method import ModelConfig, SegmenterConfig
from cosa_dist.model.build import build_network
from cosa_dist.segmenter.network import build_segmenter, image_logits

TRANSFORMER = ModelConfig(
    backbone="vit_tiny_patch16_224",
    weights="none",
    aux_layer=-2,
    backbone_options={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    freeze_position_embedding=False,
)
SWIN = ModelConfig(
    backbone="swin_tiny_patch4_window7_224",
    weights="none",
    aux_layer=-2,
    backbone_options={"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 4},
)
CNN = ModelConfig(backbone="resnet18", weights="none", aux_layer=-2)


def small(norm: str = "group") -> SegmenterConfig:
    return SegmenterConfig(decoder_channels=16, decoder_norm=norm)


@pytest.mark.parametrize("model", [TRANSFORMER, SWIN, CNN], ids=["vit", "swin", "cnn"])
def test_every_kind_of_backbone_gives_logits_at_stride_4_and_trains_all_its_parameters(model):
    network = build_segmenter(model, small(), 5, seed=0)
    output = network(torch.randn(2, 3, 64, 64))
    assert output.segmentation.shape == (2, 6, 16, 16)
    assert output.cam.shape[1] == output.aux_cam.shape[1] == 0
    output.segmentation.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("model", [TRANSFORMER, SWIN, CNN], ids=["vit", "swin", "cnn"])
def test_the_pyramid_ends_in_the_main_map(model):
    network = build_network(model, 5, seed=0).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        main, _ = network.backbone(images)
        maps = network.backbone.pyramid(images)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    assert tuple(m.shape[1] for m in maps) == network.backbone.pyramid_channels
    if main.shape == maps[-1].shape:
        torch.testing.assert_close(maps[-1], main)
    else:  # a plain transformer's grid is finer than stride 32
        torch.testing.assert_close(maps[-1], nn.functional.adaptive_avg_pool2d(main, 2))


def test_a_network_with_group_norm_sees_each_image_alone():
    network = build_segmenter(CNN, small("group"), 5, seed=0)
    network.backbone.eval()  # the ResNet's own batch norms
    images = torch.randn(3, 3, 32, 32)
    together = network(images).segmentation
    alone = network(images[1:2]).segmentation
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    kinds = {type(module) for module in network.decoder.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert nn.BatchNorm2d in {type(m) for m in build_segmenter(CNN, small("batch"), 5, 0).decoder.modules()}


def test_image_logits_are_the_highest_log_odds_of_a_pixel():
    probabilities = torch.tensor([[[[0.5, 0.1]], [[0.2, 0.6]], [[0.3, 0.3]]]])
    logits = image_logits(probabilities.log())
    expected = [math.log(0.6 / 0.4), math.log(0.3 / 0.7)]
    torch.testing.assert_close(logits, torch.tensor([expected]))
    sure = torch.tensor([[[[0.0]], [[200.0]]]])
    assert torch.isfinite(image_logits(sure)).all()
    assert image_logits(sure).item() > 0


def test_it_starts_from_the_seed_and_from_the_backbone_of_a_cosa_network(tmp_path):
    first, again, other = (build_segmenter(TRANSFORMER, small(), 5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)

    cosa = build_network(TRANSFORMER, 5, seed=7)
    save_file({k: v.contiguous() for k, v in cosa.state_dict().items()}, tmp_path / "online.safetensors")
    model = TRANSFORMER.model_copy(update={"weights": str(tmp_path / "online.safetensors")})
    taken = build_segmenter(model, small(), 9, seed=1)
    for name, value in cosa.backbone.state_dict().items():
        assert torch.equal(taken.backbone.state_dict()[name], value), name


def test_a_backbone_without_four_stages_is_refused():
    model = SWIN.model_copy(
        update={"backbone_options": {**SWIN.backbone_options, "depths": (1, 1), "num_heads": (1, 1)}}
    )
    with pytest.raises(ValueError, match="four stages"):
        build_segmenter(model, small(), 5, seed=0)
