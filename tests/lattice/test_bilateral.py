"""Bilateral filtering of images: reference numbers, the exact sum, and errors."""

import pytest
import torch

from cosa_dist.lattice.permutohedral import bilateral_features, bilateral_filter


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_reference_numbers(golden):
    arrays = golden("bilateralfilter_batch")
    images, values = torch.from_numpy(arrays["in_img"]), torch.from_numpy(arrays["in_prob"])
    filtered = bilateral_filter(images, values, 15, 50)
    torch.testing.assert_close(filtered, torch.from_numpy(arrays["out"]), rtol=1e-5, atol=1e-4)


def test_features_are_x_y_red_green_blue():
    images = torch.zeros(1, 3, 2, 3)
    images[0, :, 1, 2] = torch.tensor([30.0, 60.0, 90.0])
    features = bilateral_features(images, 15, 2)
    assert features.shape == (1, 6, 5)
    torch.testing.assert_close(features[0, 5], torch.tensor([1.0, 0.5, 2.0, 4.0, 6.0]))
    torch.testing.assert_close(features[0, 1], torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0]))


def test_normalised_filter_is_near_the_exact_sum():
    smooth = torch.nn.functional.interpolate(random(2, 3, 4, 4, seed=1), size=(20, 24), mode="bicubic")
    images = (smooth * 160 + random(2, 3, 20, 24, seed=2) * 20).clamp(0, 255)
    values = random(2, 2, 20, 24, seed=3)
    values[:, 0, :, :12] += 1
    features = bilateral_features(images, 30, 6)
    kernel = (-torch.cdist(features, features).square() / 2).exp()
    flat = values.flatten(2).transpose(1, 2)
    expected = (kernel @ flat / kernel.sum(2, keepdim=True)).transpose(1, 2).view_as(values)
    ones = bilateral_filter(images, torch.ones(2, 1, 20, 24), 30, 6)
    error = (bilateral_filter(images, values, 30, 6) / ones - expected).abs()
    assert error.mean() < 0.04
    assert (values - expected).abs().mean() > 0.15


def test_an_edge_in_colour_stops_the_filter():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 255
    values = torch.zeros(1, 1, 8, 8)
    values[..., :4] = 1
    filtered = bilateral_filter(images, values, 15, 50)
    assert filtered[..., :4].min() > 1
    assert filtered[..., 4:].abs().max() == 0


@pytest.mark.parametrize(
    ("images", "values", "sigmas", "words"),
    [
        ((1, 3, 4, 4), (1, 2, 4, 5), (15, 50), "batch and size"),
        ((1, 1, 4, 4), (1, 2, 4, 4), (15, 50), r"\[B, 3, H, W\]"),
    ],
)
def test_bad_input_is_named(images, values, sigmas, words):
    with pytest.raises(ValueError, match=words):
        bilateral_filter(torch.zeros(images), torch.zeros(values), *sigmas)
