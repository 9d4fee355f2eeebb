"""Which families of timm are which kind of backbone: each works in both stages or is refused in one line."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from cosa_dist.config.loading import build_config
from cosa_dist.config.method import ModelConfig
from cosa_dist.model.backbone_convolutional import ConvolutionalBackbone
from cosa_dist.model.backbone_swin import SwinBackbone
from cosa_dist.model.backbone_transformer import TransformerBackbone
from cosa_dist.model.build import build_network
from cosa_dist.segmenter.network import Segmenter
from cosa_dist.training.state import check_network
from tests.model.tiny_encoders import TRANSFORMERS, VIT, tiny_network

SHORT = {"depth": 2}
STAGES = {"depths": [1, 1, 1, 1]}
TABLE = {
    # name of timm: options, what wraps it (or how it is refused), side of an evaluation
    "vit_base_patch14_dinov2": (SHORT, TransformerBackbone, 448),
    "vit_small_patch14_reg4_dinov2": (SHORT, TransformerBackbone, 448),
    "vit_small_patch16_dinov3": (SHORT, TransformerBackbone, 512),
    "vit_base_patch16_clip_224": (SHORT, TransformerBackbone, 448),
    "vit_base_patch16_siglip_224": (SHORT, TransformerBackbone, 448),
    "deit3_small_patch16_224": (SHORT, TransformerBackbone, 448),
    "deit_tiny_distilled_patch16_224": (SHORT, TransformerBackbone, 448),
    "eva02_tiny_patch14_336": (SHORT, TransformerBackbone, 448),
    "eva02_base_patch16_clip_224": (SHORT, TransformerBackbone, 448),
    "vit_medium_patch16_reg4_gap_256": (SHORT, TransformerBackbone, 448),
    "swin_tiny_patch4_window7_224": (STAGES, SwinBackbone, 448),
    "swinv2_tiny_window8_256": (STAGES, SwinBackbone, 448),
    "convnext_tiny": (STAGES, ConvolutionalBackbone, 500),
    "convnextv2_atto": (STAGES, ConvolutionalBackbone, 448),
    "resnet18": ({}, ConvolutionalBackbone, 448),
    "mambaout_femto": (STAGES, ConvolutionalBackbone, 448),
    "sam2_hiera_tiny": ({}, ConvolutionalBackbone, 448),
    "hiera_tiny_224": ({}, "model.backbone cannot take an input of", 448),
    "beit_base_patch16_224": (SHORT, "gives the maps of a Beit without its final norm", 448),
    "samvit_base_patch16": ({}, "gives the maps of a VisionTransformerSAM without its final norm", 448),
    "resnetv2_50": ({}, "gives the maps of a ResNetV2 without its final norm", 448),
    "mixer_b16_224": ({}, "gives the maps of a MlpMixer without its final norm", 448),
    "convmixer_768_32": ({}, "neither a ViT, DeiT, EVA or Swin, nor a network of stages", 448),
    "vit_base_r50_s16_224": (SHORT, "a transformer behind a HybridEmbed has no plain patches", 448),
    "vit_base_patch16_224": ({**SHORT, "patch_drop_rate": 0.5}, "patch_drop_rate leaves holes", 448),
}


def settings(name, options, **changes):
    return {
        "model": {
            "backbone": name,
            "weights": "none",
            "aux_layer": -2,
            "backbone_options": options,
            **changes,
        },
    }


@pytest.mark.parametrize("kind", ["cosa", "segmenter"])
@pytest.mark.parametrize("name", TABLE)
def test_a_family_works_at_all_sizes_of_a_run_or_is_refused_in_one_line(name, kind):
    options, expected, side = TABLE[name]
    sizes = {"data": {"crop_size": 224}, "evaluation": {"size": side, "scales": [1.0, 0.5, 1.5]}}
    config = build_config({**settings(name, options), **sizes, "kind": kind, "losses": {"warmup_steps": 0}})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            check_network(config, 3)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 330
    else:
        check_network(config, 3)
        with torch.device("meta"):
            assert type(build_network(config.model, 3, 0).backbone) is expected


def test_a_network_of_one_size_works_at_that_size():
    model = settings("hiera_tiny_224", {"img_size": 448})
    crop = {"data": {"crop_size": 448}, "assignment": {"scales": [1.0]}}
    check_network(build_config({**model, **crop, "evaluation": {"scales": [1.0]}}), 3)
    with pytest.raises(ValueError, match="evaluation.size 448: .* 336 x 336"):
        check_network(build_config({**model, **crop, "evaluation": {"scales": [1.0, 0.75]}}), 3)


def test_the_scales_by_which_pseudo_masks_are_made_are_tried_too():
    model = settings("vit_base_patch14_dinov2", SHORT)
    check_network(build_config(model), 3)
    with pytest.raises(ValueError, match=r"evaluation.size 448: .* input of 313 pixels"):
        check_network(build_config({**model, "pseudo_masks": {"scales": [0.7]}}), 3)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_main_map_of_a_transformer_is_timms_normed_output(kind):
    backbone = tiny_network(kind).eval().backbone
    images = torch.rand(2, 3, 64, 64)
    main, _ = backbone(images)
    tokens = backbone.model.forward_features(images)[:, backbone.model.num_prefix_tokens :]
    torch.testing.assert_close(main.flatten(2).transpose(1, 2), tokens)


def test_rotary_embeddings_follow_the_grid_as_in_timm():
    """DINOv3 has no table that is resized: our maps are timm's at every size."""
    backbone = tiny_network("vit of dinov3").eval().backbone
    images = torch.rand(1, 3, 96, 48)
    normed, (_, auxiliary, last) = backbone.model.forward_intermediates(images)
    main, aux = backbone(images)
    torch.testing.assert_close(aux, auxiliary)
    torch.testing.assert_close(main.flatten(2).transpose(1, 2), normed[:, -18:])
    assert not torch.allclose(main, last, atol=0.1)


def test_a_norm_behind_the_pooling_is_the_final_norm_of_the_maps(tmp_path):
    """Models that pool call their final norm `fc_norm`; their files load under either name."""
    name, options = "vit_medium_patch16_reg4_gap_256", {**VIT, "img_size": 64}
    source = timm.create_model(name, num_classes=0, **options)
    nn.init.normal_(source.fc_norm.weight)
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    model = ModelConfig(**settings(name, options, weights=str(path))["model"])
    loaded = build_network(model, 3, 0).backbone.model
    assert torch.equal(loaded.norm.weight, source.fc_norm.weight)
    assert isinstance(loaded.fc_norm, nn.Identity)


@pytest.mark.parametrize("kind", ["eva02", "vit of dinov3", "swinv2", "vit of clip"])
def test_a_segmenter_trains_all_its_parameters_on_a_foundation_encoder(kind):
    network = Segmenter(tiny_network(kind).backbone, 3, 8, "group").train()
    output = network(torch.rand(2, 3, 64, 64))
    assert output.segmentation.shape == (2, 4, 16, 16)
    output.segmentation.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
