"""Backbones: sizes, position embeddings, weights by file, and errors that help."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.config.method import ModelConfig
from cosa_dist.model.backbone_transformer import resize_position_embedding
from cosa_dist.model.build import build_network, check_input_size
from cosa_dist.model.weights import parse_weight_source

OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def build(**changes):
    settings = {
        "backbone": "vit_tiny_patch16_224",
        "weights": "none",
        "backbone_options": OPTIONS,
        "aux_layer": -2,
        "decoder_channels": 16,
        **changes,
    }
    return build_network(ModelConfig(**settings), classes=3, seed=5)


def test_shapes_at_a_size_that_is_not_the_trained_one():
    output = build()(torch.rand(2, 3, 40, 64))
    assert output.logits.shape == output.aux_logits.shape == (2, 3)
    assert output.cam.shape == output.aux_cam.shape == (2, 3, 5, 8)
    assert output.segmentation.shape == (2, 4, 5, 8)
    assert output.features.shape == (2, 24, 5, 8)


def test_without_segmentation_the_rest_is_the_same():
    network = build().eval()
    images = torch.rand(2, 3, 32, 32)
    whole, part = network(images), network(images, segment=False)
    assert part.segmentation.numel() == 0
    torch.testing.assert_close(whole.cam, part.cam)


def test_logits_are_the_classifier_on_the_channel_maximum():
    network = build().eval()
    output = network(torch.rand(2, 3, 32, 32))
    pooled = output.features.flatten(2).amax(2)
    torch.testing.assert_close(output.logits, pooled @ network.classifier.weight.flatten(1).T)


def test_at_the_trained_size_the_tokens_are_timms_own():
    network = build().eval()
    images = torch.rand(1, 3, 32, 32)
    tokens = network.backbone.model.forward_features(images)
    features = network(images).features
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_position_embeddings_are_resized_without_antialiasing():
    backbone = build().backbone
    square = backbone.model.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (2, 2), mode="bicubic", antialias=False)
    resized = resize_position_embedding(backbone.model.pos_embed, 1, (4, 4), (2, 2))
    torch.testing.assert_close(resized[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(resized[:, :1], backbone.model.pos_embed[:, :1])


def test_a_file_with_another_grid_of_positions_is_resized(tmp_path):
    path = tmp_path / "w.pth"
    source = build(backbone_options={**OPTIONS, "img_size": 64}).backbone.model
    torch.save(source.state_dict(), path)
    loaded = build(weights=str(path)).backbone.model
    expected = resize_position_embedding(source.pos_embed, 1, (8, 8), (4, 4))
    torch.testing.assert_close(loaded.pos_embed, expected)


def test_attention_runs_through_the_fused_kernel(monkeypatch):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    build()(torch.rand(1, 3, 32, 32))
    assert len(calls) == 3


def test_an_option_that_drops_patches_is_refused():
    with pytest.raises(ValueError, match="patch_drop_rate"):
        build(backbone_options={**OPTIONS, "patch_drop_rate": 0.5})


def test_the_input_sizes_of_a_run_are_checked_with_the_nearest_ones_that_fit():
    backbone = build().backbone
    check_input_size(backbone, "data.crop_size", 48, (1.0, 0.5, 1.5), training=True)
    message = "data.crop_size 40: .* of 20 pixels, which its stride of 8 does not divide; choose 32 or 48"
    with pytest.raises(ValueError, match=message):
        check_input_size(backbone, "data.crop_size", 40, (1.0, 0.5, 1.5), training=True)
    backbone.any_size = True
    check_input_size(backbone, "data.crop_size", 40, (1.0, 0.5, 1.5), training=True)
    check_input_size(backbone, "evaluation.size", 43, (1.0, 0.75), training=False)
    with pytest.raises(ValueError, match="choose 40 or 48"):
        check_input_size(backbone, "data.crop_size", 43, (1.0,), training=True)


def test_a_convolutional_backbone_gives_both_maps_on_one_grid():
    network = build(backbone="resnet10t", backbone_options={}, aux_layer=-2)
    output = network(torch.rand(1, 3, 64, 96))
    assert output.cam.shape == output.aux_cam.shape == (1, 3, 2, 3)


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    one = build()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    other = build()
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_tinny"}, "no timm architecture"),
        ({"aux_layer": -4}, "not in -3..-2"),
        ({"backbone_options": {"depht": 3}}, "timm cannot create"),
        ({"weights": "/nowhere/w.pth"}, "no file at /nowhere/w.pth"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(**changes)


def test_an_input_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide an input of 36 x 32"):
        build()(torch.rand(1, 3, 36, 32))


def test_weights_of_a_file_are_loaded_and_other_ones_refused(tmp_path):
    source = build().backbone.model
    path = tmp_path / "w.pth"
    torch.save({"model": {**source.state_dict(), "head.weight": torch.zeros(2, 24)}}, path)
    with torch.no_grad():
        source.cls_token.add_(1)
    loaded = build(weights=str(path)).backbone.model
    assert not torch.equal(source.cls_token, loaded.cls_token)
    assert torch.equal(source.norm.weight, loaded.norm.weight)
    torch.save({"cls_token": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit the backbone"):
        build(weights=str(path))


def test_weight_sources_by_form(tmp_path):
    file = tmp_path / "x.safetensors"
    file.touch()
    assert parse_weight_source("none").tag == ""
    assert parse_weight_source("augreg_in21k").tag == "augreg_in21k"
    assert parse_weight_source(str(file)).file == file


def test_real_weights_load_strictly(shared_data):
    config = ModelConfig(
        backbone="deit_tiny_patch16_224",
        weights=str(shared_data / "weights" / "deit_tiny_patch16_224.pth"),
    )
    network = build_network(config, classes=20, seed=0)
    assert sum(p.numel() for p in network.backbone.parameters()) == 5_524_416
