"""The authors' checkpoints: read without running code, loaded, written back, refused where unfit."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosa_dist.model.build import build_network
from cosa_dist.model.network import CosaNetwork
from cosa_dist.model.weights import (
    RELEASED_NAMES,
    UNUSED_HEAD,
    SavedNetwork,
    read_network,
    write_ours,
    write_released,
)
from tests.conftest import SHARED
from tests.model.test_network_golden import TINY, tiny_network
from tests.model.tiny_encoders import tiny_model_config
from tests.model.tiny_encoders import tiny_network as network_of_kind

HEAD = {UNUSED_HEAD[0]: torch.rand(1000, 96), UNUSED_HEAD[1]: torch.rand(1000)}


def authors_file(path: Path, network: CosaNetwork, **changes) -> Path:
    """Save a network as the released code does, with its namespace, path and NumPy score."""
    state = {k.replace("backbone.model.", "encoder."): v for k, v in network.state_dict().items()}
    content = {
        "s_or_t": "t",
        "model": {**state, **HEAD},
        "epoch": 28000,
        "args": Namespace(aux_layer=-3, output_dir=Path("work/run"), scales=(1.0, 0.5, 1.5)),
        "result": np.float64(76.19),
    }
    torch.save({**content, **changes}, path)
    return path


def build(weights: Path, classes: int = 5, **changes) -> CosaNetwork:
    settings = {"backbone_options": TINY, "decoder_channels": 512, "decoder_dilation": 5, "aux_layer": -3}
    return build_network(
        tiny_model_config("vit", weights=str(weights), **{**settings, **changes}), classes, 0
    )


def test_an_authors_file_as_weights_gives_the_released_outputs(golden, tmp_path):
    reference = golden("vitnetwork_tiny_aux-3")
    network = build(authors_file(tmp_path / "best_seg.pth", tiny_network(-3))).eval()
    output = network(torch.from_numpy(reference["in_x"]))
    for key, value in {"seg": output.segmentation, "cam": output.cam, "cam_aux": output.aux_cam}.items():
        np.testing.assert_allclose(value.detach(), reference[f"out_{key}"], rtol=1e-4, atol=2e-5)


def test_an_authors_file_becomes_ours_and_theirs_again_bit_for_bit(tmp_path):
    theirs = authors_file(tmp_path / "best_seg.pth", tiny_network(-3))
    saved = read_network(theirs)
    assert (saved.network, saved.step, saved.aux_layer, saved.score) == ("assignment", 28000, -3, 76.19)
    write_ours(saved, tmp_path / "ours.safetensors", keep_head=True)
    again = read_network(tmp_path / "ours.safetensors")
    assert (again.network, again.step, again.aux_layer, again.score) == ("assignment", 28000, -3, 76.19)
    write_released(again, tmp_path / "again.pth")
    one, other = (torch.load(path, weights_only=False)["model"] for path in (theirs, tmp_path / "again.pth"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.pth",
        "best_seg.pth",
        "ours.safetensors",
    ]


def test_a_dropped_head_becomes_zeros(tmp_path):
    write_ours(
        read_network(authors_file(tmp_path / "a.pth", tiny_network(-3))), tmp_path / "online.safetensors"
    )
    network = build(tmp_path / "online.safetensors")
    assert torch.equal(network.classifier.weight, tiny_network(-3).classifier.weight)
    write_released(read_network(tmp_path / "online.safetensors"), tmp_path / "b.pth")
    model = torch.load(tmp_path / "b.pth", weights_only=False)["model"]
    assert model["encoder.head.weight"].shape == (1000, 96)
    assert not model["encoder.head.weight"].any()


def test_the_kept_head_is_in_nobodys_way_when_weights_are_loaded(tmp_path):
    saved = read_network(authors_file(tmp_path / "a.pth", tiny_network(-3)))
    write_ours(saved, tmp_path / "b.safetensors", keep_head=True)
    network = build(tmp_path / "b.safetensors")
    for own, other in zip(network.parameters(), tiny_network(-3).parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_names_and_shapes_of_the_published_network():
    listed = SHARED / "golden" / "vit_state_dict_keys.txt"
    if not listed.is_file():
        pytest.skip("reference numbers (../shared/golden) are not beside the project")
    rows = [line.split("\t")[:2] for line in listed.read_text().splitlines() if not line.startswith("#")]
    theirs = {key: shape for key, shape in rows if key not in UNUSED_HEAD}
    assert all(RELEASED_NAMES.fullmatch(key) for key in theirs)
    config = tiny_model_config(
        "vit",
        backbone="vit_base_patch16_224",
        backbone_options={},
        decoder_channels=512,
        aux_layer=-3,
    )
    with torch.device("meta"):
        own = build_network(config, 20, 0).state_dict()
    assert {k.replace("backbone.model.", "encoder."): str(list(v.shape)) for k, v in own.items()} == theirs


@pytest.mark.parametrize(
    ("classes", "changes", "message"),
    [
        (80, {}, "was trained for 5 classes, this data set has 80"),
        (5, {"backbone_options": {**TINY, "depth": 6}}, "holds a backbone of 4 blocks, model.backbone has 6"),
        (5, {"decoder_channels": 64}, r"other shapes .*decoder.conv6.weight \[512, 96, 3, 3\] for \[64,"),
        (5, {"backbone_options": {**TINY, "num_heads": 4, "reg_tokens": 2}}, "missing .*reg_token"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(classes, changes, message, tmp_path):
    path = authors_file(tmp_path / "a.pth", tiny_network(-3))
    with pytest.raises(ValueError, match=f"model.weights: {path} .*{message}") as caught:
        build(path, classes, **changes)
    assert "\n" not in str(caught.value)


def test_another_grid_of_positions_is_resized_and_another_aux_layer_is_warned_of(tmp_path, caplog):
    path = authors_file(tmp_path / "a.pth", tiny_network(-3))
    with caplog.at_level(logging.WARNING):
        network = build(path, backbone_options={**TINY, "img_size": 96}, aux_layer=-2)
    assert network.backbone.model.pos_embed.shape == (1, 37, 96)
    assert "trained with model.aux_layer -3, this run has -2" in caplog.text


def test_a_network_that_is_none_of_theirs_is_not_written(tmp_path):
    for kind, part in (("swin", "layers.0"), ("vit with registers", "ls1.gamma")):
        saved = SavedNetwork(network_of_kind(kind).state_dict())
        with pytest.raises(ValueError, match=f"plain ViT with a class token only; .*{part}"):
            write_released(saved, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_alone_is_no_whole_network(tmp_path):
    torch.save(tiny_network(-3).backbone.model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no whole network"):
        read_network(tmp_path / "w.pth")
