"""Pixel-adaptive refinement: a plain loop over pixels as oracle, hand-computed cases, errors."""

import math
import statistics

import pytest
import torch

from cosa_dist.lattice.pixel_adaptive import neighbour_indices, pixel_adaptive


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(values):
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def plain_weights(image, y, x, offsets, sharpness, position_weight):
    """Weights of one pixel's neighbours as the paper writes them; `image` is `[C][H][W]` lists."""
    height, width = len(image[0]), len(image[0][0])
    spots = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in offsets]
    exponents = [0.0] * len(spots)
    for plane in image:
        spread = statistics.stdev([plane[r][c] for r, c in spots])
        for index, (r, c) in enumerate(spots):
            exponents[index] -= ((plane[r][c] - plane[y][x]) / (sharpness * (spread + 1e-8))) ** 2 / len(
                image
            )
    distances = [math.hypot(dy, dx) for dy, dx in offsets]
    spread = statistics.stdev(distances)
    nearness = softmax([-((distance / (sharpness * spread)) ** 2) for distance in distances])
    colour = softmax(exponents)
    return spots, [c + position_weight * n for c, n in zip(colour, nearness, strict=True)]


def plain_refinement(image, maps, dilations, iterations, sharpness, position_weight):
    """Refine `[K][H][W]` lists with loops over everything."""
    offsets = [(d * dy, d * dx) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    height, width = len(image[0]), len(image[0][0])
    kernels = {
        (y, x): plain_weights(image, y, x, offsets, sharpness, position_weight)
        for y in range(height)
        for x in range(width)
    }
    for _ in range(iterations):
        maps = [
            [
                [sum(w * plane[r][c] for (r, c), w in zip(*kernels[y, x], strict=True)) for x in range(width)]
                for y in range(height)
            ]
            for plane in maps
        ]
    return torch.tensor(maps)


@pytest.mark.parametrize(
    ("dilations", "iterations", "sharpness", "position_weight"),
    [((1, 2, 4, 8, 12, 24), 3, 0.3, 0.01), ((1, 3), 1, 0.7, 0.5)],
)
def test_equals_the_plain_loops(dilations, iterations, sharpness, position_weight):
    images, maps = random(2, 3, 7, 9, seed=1) * 255, random(2, 2, 7, 9, seed=2)
    settings = {"dilations": dilations, "iterations": iterations, "sharpness": sharpness}
    refined = pixel_adaptive(images, maps, **settings, position_weight=position_weight)
    for index in range(2):
        plain = plain_refinement(
            images[index].tolist(), maps[index].tolist(), dilations, iterations, sharpness, position_weight
        )
        torch.testing.assert_close(refined[index], plain, rtol=1e-4, atol=1e-5)
    assert (refined - maps).abs().mean() > 0.05


def test_the_published_settings_are_the_default():
    images, maps = random(1, 3, 6, 6, seed=3), random(1, 1, 6, 6, seed=4)
    published = {
        "dilations": (1, 2, 4, 8, 12, 24),
        "iterations": 10,
        "sharpness": 0.3,
        "position_weight": 0.01,
    }
    assert torch.equal(pixel_adaptive(images, maps), pixel_adaptive(images, maps, **published))


def test_neighbours_by_hand():
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    indices = neighbour_indices(3, 4, torch.tensor([[d * y, d * x] for d in (1, 2) for y, x in around]))
    assert indices.shape == (12, 16)
    # The corner sees itself where the image ends; the pixel (1, 2) has index 6.
    assert indices[0].tolist() == [0, 0, 1, 0, 1, 4, 4, 5, 0, 0, 2, 0, 2, 8, 8, 10]
    assert indices[6, :8].tolist() == [1, 2, 3, 5, 7, 9, 10, 11]


def test_an_edge_in_colour_stops_the_refinement_and_a_flat_side_is_levelled():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 255
    maps = torch.zeros(1, 1, 16, 16)
    maps[..., :8] = 2 * random(1, 1, 16, 8, seed=5)
    refined = pixel_adaptive(images, maps, position_weight=0)
    assert refined[..., 8:].max() < 1e-3
    assert refined[..., :8].std() < 0.1 * maps[..., :8].std()


def test_a_constant_map_grows_by_the_position_weight_only():
    refined = pixel_adaptive(random(1, 3, 5, 8, seed=6), torch.ones(1, 2, 5, 8))
    torch.testing.assert_close(refined, torch.full_like(refined, 1.01**10))


def test_a_constant_image_and_another_range_of_colours():
    maps = random(1, 2, 8, 8, seed=7)
    assert pixel_adaptive(torch.full((1, 3, 8, 8), 40.0), maps).isfinite().all()
    images = random(1, 3, 8, 8, seed=8)
    torch.testing.assert_close(
        pixel_adaptive(images, maps), pixel_adaptive(images * 255, maps), rtol=1e-3, atol=1e-4
    )


def test_batch_equals_single_images_and_half_precision_is_taken_as_float32():
    images, maps = random(2, 3, 6, 7, seed=9), random(2, 3, 6, 7, seed=10).bfloat16()
    together = pixel_adaptive(images, maps)
    assert together.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pixel_adaptive(images, maps), together)
    torch.testing.assert_close(together[1:], pixel_adaptive(images[1:], maps[1:]))


@pytest.mark.parametrize(
    ("images", "maps", "words"),
    [
        ((1, 3, 4, 4), (2, 2, 4, 4), "for images"),
        ((1, 3, 4, 4), (1, 2, 4, 5), "resize one first"),
        ((1, 3, 4, 4), (1, 4, 4), r"\[B, K, H, W\]"),
    ],
)
def test_bad_input_is_named(images, maps, words):
    with pytest.raises(ValueError, match=words):
        pixel_adaptive(torch.zeros(images), torch.zeros(maps))
