"""Filter, dense CRF and refinement on the device: the CPU's values, and the same bits twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.permutohedral import bilateral_filter
from cosa_dist.lattice.pixel_adaptive import pixel_adaptive


def pictures(height, width, planes, seed=0):
    """Two smooth pictures with some noise, and maps that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3 + planes, 6, 7, generator=generator)
    smooth = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    noise = 20 * torch.rand(2, 3, height, width, generator=generator)
    return 230 * smooth[:, :3] + noise, (8 * smooth[:, 3:]).softmax(1)


WORK = {
    "filter": lambda images, maps: bilateral_filter(images, maps, 15.0, 50.0),
    "CRF": lambda images, maps: DenseCrf.build(images, CRF_SETTINGS["released"]).refine(maps),
    "CRF, ten": lambda images, maps: DenseCrf.build(images, CRF_SETTINGS["ten_iterations"]).refine(maps),
    "PAR": pixel_adaptive,
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("planes", [5, 81])
def test_values_are_the_cpus_and_the_same_twice(device, name, planes):
    side = 112 if device.type == "cuda" else 24
    images, maps = pictures(side, side + 10, planes)
    expected = WORK[name](images, maps)
    once, again = (WORK[name](images.to(device), maps.to(device)) for _ in range(2))
    assert torch.equal(once, again)
    torch.testing.assert_close(once.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("colour", [0.0, 200.0])
def test_a_picture_of_one_colour(device, colour):
    """All points share few vertices: the longest runs of points that a lattice can have."""
    side = 224 if device.type == "cuda" else 32
    images = torch.full((1, 3, side, side), colour)
    _, maps = pictures(side, side, 21)
    expected = bilateral_filter(images, maps[:1], 15.0, 50.0)
    found = bilateral_filter(images.to(device), maps[:1].to(device), 15.0, 50.0)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_values_at_the_ends_of_the_colours(device):
    """Black and white pictures reach the ends of the lattice's keys."""
    images = torch.zeros(1, 3, 20, 30)
    images[..., 15:] = 255
    _, maps = pictures(20, 30, 3)
    expected = bilateral_filter(images, maps[:1], 3.0, 5.0)
    torch.testing.assert_close(
        bilateral_filter(images.to(device), maps[:1].to(device), 3.0, 5.0).cpu(),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )
