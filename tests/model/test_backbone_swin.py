"""Swin: timm's own numbers where timm is right, no sight across borders where it is not, file formats."""

from __future__ import annotations

import pytest
import timm
import torch

from cosa_dist.model.backbone_swin import plan_windows, run_swin_block
from tests.model.tiny_encoders import KINDS, SWIN, tiny_network


@pytest.mark.parametrize("size", [(96, 96), (192, 96), (192, 192)])
@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_sizes_that_need_no_padding_give_timms_own_features(kind, size):
    backbone = tiny_network(kind).eval().backbone
    reference = timm.create_model(KINDS[kind][0], num_classes=0, img_size=size, **SWIN).eval()
    reference.load_state_dict(backbone.model.state_dict())
    images = torch.rand(2, 3, *size)
    main, _ = backbone(images)
    torch.testing.assert_close(main, reference.forward_features(images).permute(0, 3, 1, 2))


def test_the_auxiliary_map_is_the_earlier_stage_averaged():
    backbone = tiny_network("swin", aux_layer=-3).eval().backbone
    images = torch.rand(1, 3, 96, 96)
    stage = backbone.model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    assert stage.shape == (1, 32, 12, 12)
    expected = stage.unflatten(2, (3, 4)).unflatten(4, (3, 4)).mean((3, 5))
    torch.testing.assert_close(backbone(images)[1], expected)


def test_opposite_borders_do_not_see_each_other_through_padding():
    block = tiny_network("swin").eval().backbone.model.layers[0].blocks[1]
    windows = plan_windows((5, 5), (3, 3), True, torch.device("cpu"))
    tokens = torch.rand(1, 5, 5, 16)
    changed = tokens.clone()
    changed[:, 0] += 1
    before, after = (run_swin_block(block, each, windows) for each in (tokens, changed))
    assert not torch.allclose(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1:], after[:, 1:])


def test_a_file_of_the_swin_authors_is_renamed_and_its_buffers_are_left_out(tmp_path):
    source = tiny_network("swin").backbone.model
    state = {}
    for key, value in source.state_dict().items():
        parts = key.split(".")
        if "downsample" in key:  # the authors shrink at the end of a stage, timm at the start of the next
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts)] = value + 1
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    state["head.weight"] = torch.zeros(10, 128)
    path = tmp_path / "swin.pth"
    torch.save({"model": state}, path)
    loaded = tiny_network("swin", weights=str(path)).backbone.model
    for key, value in source.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value + 1)
