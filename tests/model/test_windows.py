"""Windows on grids of any size against their definition, pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from cosa_dist.model.backbone_swin import kept_windows, plan_windows
from tests.model.tiny_encoders import tiny_network

CPU = torch.device("cpu")
SIDES = st.integers(1, 11)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(2, 4), st.booleans())
def test_joining_undoes_splitting(height, width, size, shifted):
    windows = plan_windows((height, width), (size, size), shifted, CPU)
    tokens = torch.rand(2, height, width, 3)
    assert torch.equal(windows.join(windows.split(tokens)), tokens)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(2, 4), st.booleans())
def test_tokens_see_exactly_their_neighbours_in_the_window(height, width, size, shifted):
    windows = plan_windows((height, width), (size, size), shifted, CPU)
    rows = torch.arange(1, height + 1)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1).expand(height, width)
    places = torch.stack([rows, columns], -1)[None].float()
    cut = windows.split(places)  # padding is (0, 0)
    real = cut[..., 0] > 0
    near = (cut[:, :, None] - cut[:, None]).abs().amax(-1) < size
    wanted = near & real[:, :, None] & real[:, None]
    mask = torch.zeros(len(cut), size**2, size**2) if windows.mask is None else windows.mask
    both_real = real[:, :, None] & real[:, None]
    assert torch.equal((mask == 0) & both_real, wanted)
    assert not ((mask == 0) & (real[:, :, None] != real[:, None])).any()
    assert (mask == 0).any(-1).all()


@pytest.mark.parametrize(
    ("grid", "shift", "padded", "masked"),
    [
        ((6, 6), (1, 1), (6, 6), True),
        ((3, 6), (0, 1), (3, 6), True),
        ((3, 3), (0, 0), (3, 3), False),
        ((2, 4), (0, 1), (3, 6), True),
    ],
)
def test_shift_and_padding_by_hand(grid, shift, padded, masked):
    windows = plan_windows(grid, (3, 3), True, CPU)
    assert (windows.shift, windows.padded, windows.mask is not None) == (shift, padded, masked)


def test_windows_are_planned_once_for_each_grid():
    kept_windows.cache_clear()
    network = tiny_network("swin").eval()
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        first = network(images)
    planned = kept_windows.cache_info().misses
    # Trained with the masks of an evaluation, which must not be tensors of inference mode.
    network(images).segmentation.sum().backward()
    again = network(images)
    assert planned == kept_windows.cache_info().misses > 0
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_windows_of_fake_tensors_are_not_kept():
    kept_windows.cache_clear()
    network = tiny_network("swin").eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network(torch.rand(1, 3, 96, 64))
    assert kept_windows.cache_info().currsize == 0
    exported = torch.export.export(network, (torch.rand(1, 3, 96, 64),)).module()
    assert kept_windows.cache_info().currsize == 0
    images = torch.rand(1, 3, 96, 64)
    torch.testing.assert_close(exported(images).cam, network(images).cam)
