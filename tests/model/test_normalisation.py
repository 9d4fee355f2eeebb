"""Colours as the encoder was trained on them, the same wherever a run's network is used."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cosa_dist.config.loading import build_config, load_config, recipe_names, stored_config
from cosa_dist.config.method import ModelConfig
from cosa_dist.data.reading.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from cosa_dist.inference.export import export
from cosa_dist.inference.export_graph import PlainSegmenter
from cosa_dist.inference.trained import TrainedModel
from cosa_dist.model.build import build_network, normalisation
from cosa_dist.training.checkpoint import load_networks, save_checkpoint
from cosa_dist.training.state import build_state
from tests.model.tiny_encoders import KINDS

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("vit_base_patch16_clip_224", "openai", CLIP),
        ("eva02_base_patch14_224", "mim_in22k", CLIP),
        ("vit_base_patch14_dinov2", "lvd142m", IMAGENET),
        ("vit_base_patch16_224", "orig_in21k_ft_in1k", HALF),
        ("vit_base_patch16_224", "dino", IMAGENET),
        ("vit_base_patch16_clip_224", "folder/file.pth", CLIP),
        ("vit_base_patch16_clip_224", "none", IMAGENET),
        ("vit_base_patch16_clip_224", "no_such_tag", IMAGENET),
    ],
)
def test_mean_and_deviation_are_those_of_the_weights(backbone, weights, expected):
    assert normalisation(ModelConfig(backbone=backbone, weights=weights)) == expected
    imagenet = ModelConfig(backbone=backbone, weights=weights, normalisation="imagenet")
    assert normalisation(imagenet) == IMAGENET


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if "released" in name])
def test_released_recipes_keep_imagenets(recipe):
    assert normalisation(load_config(recipe).model) == IMAGENET


def model(weights: str) -> ModelConfig:
    backbone, options = KINDS["vit of clip"]
    settings = {"decoder_channels": 16, "decoder_dilation": 1, "aux_layer": -2}
    return ModelConfig(backbone=backbone, backbone_options=options, weights=weights, **settings)


def test_the_encoder_sees_its_own_colours():
    network = build_network(model("openai"), 3, 0, load_weights=False).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in CLIP)
    main, auxiliary = network.backbone((pixels / 255 - mean) / std)
    output = network(normalise(pixels))
    torch.testing.assert_close(output.features, main, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.aux_cam, network.aux_classifier(auxiliary)[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network.backbone(normalise(pixels))[0], main, atol=1e-2)
    images = torch.rand(1, 3, 4, 4)
    network.backbone.mean, network.backbone.std = IMAGENET
    assert network.backbone.recoloured(images) is images


def test_checkpoints_and_exports_keep_it_when_the_weights_are_gone(tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_file(build_network(model("none"), 3, 0).backbone.model.state_dict(), file)
    config = build_config(
        {
            "model": model(str(file)).model_dump(),
            "data": {"crop_size": 64},
            "evaluation": {"size": 64, "scales": [1.0]},
            "output": str(tmp_path),
        }
    )
    state = build_state(config, 3, torch.device("cpu"))
    save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1)
    file.unlink()
    images = torch.randint(0, 256, (1, 3, 64, 64)).float()
    _, networks = load_networks(tmp_path / "run", "newest", torch.device("cpu"))
    with torch.no_grad():
        expected = state.online.eval()(normalise(images)).logits
        for network in networks.values():
            assert (network.backbone.mean, network.backbone.std) == CLIP
            torch.testing.assert_close(network(normalise(images)).logits, expected)
            torch.testing.assert_close(PlainSegmenter(network, 64)(images)[1], expected)


@pytest.mark.parametrize(("recipe", "licence"), [("voc_dinov3", "dinov3-license"), ("tiny", None)])
def test_the_card_of_an_export_names_the_licence_of_the_weights(recipe, licence, tmp_path):
    config = load_config(recipe)
    model = TrainedModel(nn.Identity(), config, ("a",), "run", "step", "online", "network online")
    export(model, tmp_path / "out", [])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"licence `{licence}`" in card) == (licence is not None)
    assert ("initial weights |" in card) == (licence is not None)


def test_a_run_of_an_earlier_version_keeps_imagenets():
    stored = build_config({}).model_dump()
    assert stored_config(stored, "run").model.normalisation == "encoder"
    del stored["model"]["normalisation"]
    assert stored_config(stored, "run").model.normalisation == "imagenet"
