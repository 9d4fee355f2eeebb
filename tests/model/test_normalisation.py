"""Colours as the encoder was trained on them, the same wherever a run's network is used."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cosa_dist.config.loading import build_config, load_config, recipe_names, stored_config
from cosa_dist.config.method import ModelConfig, SegmenterConfig
from cosa_dist.data.reading.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from cosa_dist.inference.export import export
from cosa_dist.inference.export_graph import PlainSegmenter
from cosa_dist.inference.trained import TrainedModel, load_trained
from cosa_dist.model.build import build_network, normalisation
from cosa_dist.model.weights import SavedNetwork, read_network, write_ours, write_released
from cosa_dist.segmenter.network import build_segmenter
from cosa_dist.training.checkpoint import load_networks, restore_newest, save_checkpoint
from cosa_dist.training.state import build_state
from tests.model.tiny_encoders import KINDS

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CPU = torch.device("cpu")
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
    network.backbone.colours = IMAGENET
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
            assert network.backbone.colours == CLIP
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


OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def configured(weights: str, **changes):
    sizes = {"data": {"crop_size": 64}, "evaluation": {"size": 64, "scales": [1.0]}}
    return build_config({"model": {**model(weights).model_dump(), **changes}, **sizes})


def checkpoint_of(colours, folder):
    """Weight files of a run whose encoder was trained with these colours."""
    state = build_state(configured("none"), 3, CPU)
    for network in state.networks.values():
        network.backbone.colours = colours
    return save_checkpoint(state, folder / "run" / "checkpoints", keep=1)


def test_a_file_of_a_network_brings_the_colours_that_it_was_trained_with(tmp_path):
    checkpoint = checkpoint_of(OWN, tmp_path)
    for name in ("online", "assignment"):
        file = str(checkpoint / f"{name}.safetensors")
        assert build_network(model(file), 3, 0).backbone.colours == OWN
        segmenter = build_segmenter(model(file), SegmenterConfig(decoder_channels=16), 3, 0)
        assert segmenter.backbone.colours == OWN
        imagenet = model(file).model_copy(update={"normalisation": "imagenet"})
        assert build_network(imagenet, 3, 0).backbone.colours == IMAGENET
    ours = tmp_path / "ours.safetensors"
    write_ours(read_network(checkpoint / "assignment.safetensors"), ours)
    assert build_network(model(str(ours)), 3, 0).backbone.colours == OWN


def test_the_files_of_earlier_versions_and_of_the_authors_are_of_imagenets_colours(tmp_path):
    state = build_network(model("none"), 3, 0).state_dict()
    save_file(state, old := tmp_path / "online.safetensors")
    vit = ModelConfig(backbone="vit_base_patch16_224", weights="none", backbone_options=KINDS["vit"][1])
    torch.save({"model": build_network(vit, 3, 0).state_dict(), "s_or_t": "s"}, their := tmp_path / "a.pth")
    assert build_network(model(str(old)), 3, 0).backbone.colours == IMAGENET
    theirs = vit.model_copy(update={"weights": str(their)})
    assert normalisation(theirs) == HALF
    assert build_network(theirs, 3, 0).backbone.colours == IMAGENET
    segmenter = build_segmenter(model("none"), SegmenterConfig(decoder_channels=16), 3, 0)
    save_file(segmenter.state_dict(), old)
    assert build_network(model(str(old)), 3, 0).backbone.colours == IMAGENET


def test_a_file_that_does_not_say_its_colours_has_the_architectures_and_a_line_of_log(tmp_path, caplog):
    save_file(
        build_network(model("none"), 3, 0).backbone.model.state_dict(), file := tmp_path / "a.safetensors"
    )
    with caplog.at_level("INFO"):
        assert build_network(model(str(file)), 3, 0).backbone.colours == CLIP
    assert "does not say its colours" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        build_network(model(str(file)).model_copy(update={"normalisation": "imagenet"}), 3, 0)
    assert "colours" not in caplog.text


def test_a_resumed_run_and_its_export_keep_what_the_file_said_when_it_is_gone(tmp_path):
    file = checkpoint_of(OWN, tmp_path / "first") / "online.safetensors"
    config = configured(str(file.rename(tmp_path / "weights.safetensors")))
    state = build_state(config, 3, CPU)
    save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1)
    (tmp_path / "weights.safetensors").unlink()
    resumed = build_state(config, 3, CPU, load_weights=False)
    assert restore_newest(resumed, tmp_path / "run" / "checkpoints")
    _, loaded = load_networks(tmp_path / "run", "newest", CPU)
    for network in (*resumed.networks.values(), *loaded.values()):
        assert network.backbone.colours == OWN
    trained = TrainedModel(loaded["online"], config, ("a", "b", "c"), "run", "step-0", "online", "")
    export(trained, tmp_path / "out", ["weights"])
    assert load_trained(tmp_path / "out", "", "", CPU).network.backbone.colours == OWN


def test_the_export_of_a_run_from_a_file_without_suffix_names_a_file_too(tmp_path):
    config = configured(str(tmp_path / "pretrained"))
    network = build_network(config.model, 3, 0, load_weights=False).eval()
    trained = TrainedModel(network, config, ("a", "b", "c"), "run", "step-0", "online", "")
    export(trained, tmp_path / "out", ["weights"])
    exported = load_trained(tmp_path / "out", "", "", CPU)
    assert exported.config.model.weights == "./pretrained"
    assert exported.network.backbone.colours == normalisation(exported.config.model) == CLIP


@pytest.mark.parametrize("colours", [IMAGENET, OWN])
def test_a_file_for_the_authors_code_warns_of_other_colours_than_its_own(colours, tmp_path, caplog):
    network = build_network(
        ModelConfig(backbone=KINDS["vit"][0], weights="none", backbone_options=KINDS["vit"][1]), 3, 0
    )
    saved = SavedNetwork(network.state_dict(), colours=colours)
    write_released(saved, tmp_path / "best.pth")
    assert caplog.text.count("normalises with ImageNet's") == (colours == OWN)
