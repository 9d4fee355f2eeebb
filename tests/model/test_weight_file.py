"""Weight files: what is read, what is opened, and that nothing in them runs."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosa_dist.model.weight_file import Unread, read_file, state_dict_of
from tests.model.tiny_encoders import tiny_network

TENSORS = {"a": torch.arange(3.0), "b.c": torch.ones(1, 2)}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    return state_dict_of(read_file(path), path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"model": t},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"model": {f"module.{k}": v for k, v in t.items()}, "args": Namespace(out=Path("x"))},
        lambda t: {"student": {"c": torch.ones(1)}, "teacher": t, "optimizer": {"state": {0: {"m": t["a"]}}}},
        lambda t: {"student": t, "epoch": 3},
        lambda t: {"model_ema": t, "epoch": 3},
        lambda t: {"model": {"name": "vit", "depth": 3}, "state_dict": t},
        lambda t: {"model": t, "model_ema": {"c": torch.ones(1)}},
        lambda t: {f"_orig_mod.module.{k}": v for k, v in t.items()},
        lambda t: {"state_dict": {f"module._orig_mod.{k}": v for k, v in t.items()}},
        lambda t: {**t, "epoch": 3, "args": Namespace()},
    ],
)
def test_wrappers_and_prefixes_are_opened(wrap, tmp_path):
    torch.save(wrap(TENSORS), tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert state.keys() == TENSORS.keys()
    assert all(torch.equal(state[key], TENSORS[key]) for key in TENSORS)


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a"], TENSORS["a"])


def test_values_beside_the_weights_are_inert(tmp_path):
    content = {
        "score": np.float64(76.19),
        "epoch": np.int64(7),
        "table": np.zeros((2, 2)),
        "args": Namespace(path=Path("a/b"), scales=(1.0, 0.5), nested={"x": None}),
    }
    torch.save(content, tmp_path / "w.pth")
    read = read_file(tmp_path / "w.pth")
    assert (read["score"], read["epoch"]) == (76.19, 7)
    assert isinstance(read["table"], Unread)
    assert str(read["args"].path) == "a/b"
    assert read["args"].scales == (1.0, 0.5)


@pytest.mark.parametrize("place", ["beside", "in the namespace", "alone"])
def test_code_in_a_file_is_refused_in_one_line_and_does_not_run(place, tmp_path):
    evil = Evil(tmp_path / "ran")
    contents = {
        "beside": {"model": TENSORS, "args": evil},
        "in the namespace": {"model": TENSORS, "args": Namespace(a=evil)},
        "alone": evil,
    }
    path = tmp_path / "w.pth"
    torch.save(contents[place], path)
    with pytest.raises(ValueError, match=f"{path} cannot be read as tensors: .*mkdir") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_one_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as tensors") as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (
            "w.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "pointer of Git LFS",
        ),
        ("w.pth", b"<!DOCTYPE html>\n<html>", "web page"),
        ("w.bin", b"<html><body>404", "web page"),
        ("w.pth", b"\n <?xml version='1.0'?><Error>", "web page"),
        ("w.pth", b'{"error": "gone"}', "Unsupported operand 123$"),
        ("w.pth", b"", "empty: download it again"),
        ("w.pth", "HALF", "its end is missing: download it again"),
        ("w.safetensors", "ZIP", "name it .pth"),
    ],
)
def test_what_a_file_is_instead_is_said(name, content, message, tmp_path):
    torch.save(TENSORS, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    content = {"HALF": whole[: len(whole) // 2], "ZIP": whole}.get(content, content)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / name)


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file(TENSORS, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], TENSORS["a"])


def test_a_file_of_the_old_form_is_read(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["b.c"], TENSORS["b.c"])


def test_a_choice_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    torch.save({"student": TENSORS, "teacher": TENSORS, "epoch": 1}, tmp_path / "w.pth")
    read_state_dict(tmp_path / "w.pth")
    assert "w.pth holds teacher, student: teacher is taken" in caplog.text


def own_backbone() -> dict[str, torch.Tensor]:
    return tiny_network("vit").backbone.model.state_dict()


def under(prefix: str, tensors: dict[str, torch.Tensor], factor: float = 1.0) -> dict[str, torch.Tensor]:
    return {prefix + key: value * factor for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        # DINO and iBOT
        (
            lambda t: {
                "student": under("module.backbone.", t, 2.0),
                "teacher": under("backbone.", t) | {"head.mlp.0.weight": torch.ones(2)},
            },
            "its part backbone is taken",
        ),
        # DINOv2
        (
            lambda t: {"model": under("student.backbone.", t, 2.0) | under("teacher.backbone.", t)},
            "its part teacher.backbone is taken",
        ),
        # MoCo v3
        (
            lambda t: {
                "state_dict": under("module.base_encoder.", t) | under("module.momentum_encoder.", t, 2.0)
            },
            "its part base_encoder is taken",
        ),
        # Lightning, mmsegmentation, SimMIM
        (lambda t: {"state_dict": under("model.", t)}, "its part model is taken"),
        (lambda t: {"state_dict": under("backbone.", t) | {"decode_head.w": torch.ones(1)}}, "part backbone"),
        (lambda t: {"model": under("encoder.", t) | {"decoder.0.weight": torch.ones(1)}}, "part encoder"),
        # MAE
        (lambda t: {"model": {**t, "mask_token": torch.ones(1), "decoder_embed.bias": torch.ones(1)}}, ""),
        # a second stage of this project
        (lambda t: under("backbone.model.", t) | {"head.weight": torch.ones(4, 2, 1, 1)}, ""),
    ],
)
def test_the_backbone_of_a_training_script_finds_its_place(wrap, said, tmp_path, caplog):
    caplog.set_level("INFO")
    own = {key: torch.randn_like(value) for key, value in own_backbone().items()}
    torch.save(wrap(own), tmp_path / "w.pth")
    loaded = tiny_network("vit", weights=str(tmp_path / "w.pth")).backbone.model.state_dict()
    assert all(torch.equal(loaded[key], own[key]) for key in own)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda t: {"conv1.weight": torch.ones(1)},
            "no tensor of the backbone: its names are like conv1.weight",
        ),
        (lambda t: under("vit.embeddings.", t), "no tensor of the backbone"),
        (lambda t: {k: v for k, v in t.items() if ".0." not in k}, "holds a backbone of 2 blocks"),
        (lambda t: {k: v for k, v in t.items() if k != "cls_token"}, "missing \\['cls_token'\\]"),
        (lambda t: {**t, "cls_token": torch.ones(1, 1, 5)}, "other shapes \\['cls_token"),
        (lambda t: {**t, "extra": torch.ones(1)}, "unknown \\['extra'\\]"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite, in"),
    ],
)
def test_another_architecture_is_refused_in_one_line(wrap, message, tmp_path):
    torch.save(wrap(own_backbone()), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"^model.weights: .*{message}") as caught:
        tiny_network("vit", weights=str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {}, {"model": {"a": "text"}}])
def test_a_file_without_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["resnet", "convnext", "swin", "deit with distillation"])
def test_a_timm_file_finds_its_place_in_each_kind(kind, tmp_path):
    import timm

    from tests.model.tiny_encoders import KINDS

    name, options = KINDS[kind]
    whole = timm.create_model(name, **options)  # with timm's names and its classification head
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    images = torch.rand(1, 3, 64, 64)
    loaded = tiny_network(kind, weights=str(tmp_path / "w.pth")).eval()
    if kind in ("resnet", "convnext"):
        expected = whole.eval().forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(loaded(images).features, expected)
    own = loaded.backbone.model.state_dict()
    theirs = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    assert all(torch.equal(value, theirs[key.replace(".", "_")]) for key, value in own.items())
