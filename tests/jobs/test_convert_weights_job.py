"""jobs/convert_weights.py: both directions, and errors in one line that leave nothing behind."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from cosa_dist.model.weights import read_network
from jobs.convert_weights import main
from tests.model.tiny_encoders import tiny_network


def test_a_runs_checkpoint_becomes_an_authors_file_and_ours_again(tmp_path, capsys):
    network = tiny_network("vit")
    source = tmp_path / "assignment.safetensors"
    save_file(network.state_dict(), source)
    assert main([str(source), str(tmp_path / "best_seg.pth")]) == 0
    assert "assignment network of 3 classes" in capsys.readouterr().out
    theirs = torch.load(tmp_path / "best_seg.pth", weights_only=False)
    assert theirs["s_or_t"] == "t"
    assert theirs["model"]["encoder.head.bias"].shape == (1000,)
    assert main([str(tmp_path / "best_seg.pth"), str(tmp_path / "again.safetensors")]) == 0
    state = read_network(tmp_path / "again.safetensors").state
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_what_cannot_be_converted_is_one_line(tmp_path, capsys):
    source, target = tmp_path / "online.safetensors", tmp_path / "there.pth"
    save_file(tiny_network("resnet").state_dict(), source)
    target.touch()
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    cases = [
        ([source, target], "exists already"),
        ([source, target, "--overwrite"], "plain ViT"),
        ([source, tmp_path / "x.bin"], "must end in"),
        ([tmp_path / "gone.pth", tmp_path / "x.pth"], "no file at"),
        ([broken, tmp_path / "x.safetensors"], "cannot be read as tensors"),
    ]
    for words, part in cases:
        assert main([str(word) for word in words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert part in lines[0]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["broken.pth", "online.safetensors", "there.pth"]
    assert target.stat().st_size == 0
