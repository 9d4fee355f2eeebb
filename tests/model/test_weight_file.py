"""Weight files: what is read, what is opened, and that nothing in them runs."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosa_dist.model.weight_file import Unread, read_file, read_state_dict
from tests.model.tiny_encoders import tiny_network

TENSORS = {"a": torch.arange(3.0), "b.c": torch.ones(1, 2)}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"model": t},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"model": {f"module.{k}": v for k, v in t.items()}, "args": Namespace(out=Path("x"))},
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
