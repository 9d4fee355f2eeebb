"""The dense CRF: reference numbers, exact Gaussian sums, the plain formulation, errors."""

import pytest
import torch

from cosa_dist.config.schema import CrfConfig
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.permutohedral import PermutohedralLattice, bilateral_features, position_features

TEN = CRF_SETTINGS["ten_iterations"]


def crf_config(*values):
    """A configuration from iterations, position sigma and weight, bilateral sigmas (xy, rgb) and weight."""
    names = ("iterations", "position_sigma", "position_weight")
    names += ("bilateral_sigma_xy", "bilateral_sigma_rgb", "bilateral_weight")
    return CrfConfig(**dict(zip(names, values, strict=True)))


def dense_crf(images, probabilities, config=CRF_SETTINGS["released"]):
    return DenseCrf.build(images, config).refine(probabilities)


SMALL = crf_config(3, 2.0, 3.0, 8.0, 40.0, 6.0)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_images(batch, height, width, seed=0):
    """Smooth colours with some noise, 0..255."""
    coarse = random(batch, 3, 4, 4, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth * 180 + random(batch, 3, height, width, seed=seed + 1) * 20).clamp(0, 255)


def some_probabilities(batch, classes, height, width, seed=2):
    return (3 * random(batch, classes, height, width, seed=seed)).softmax(1)


def plain_crf(probabilities, settings, kernels):
    """Mean field as the paper writes it; a kernel maps `[N, K]` to the sum over all pixels."""
    least = probabilities.flatten(1).t().clamp(min=1e-5).log()
    beliefs = least.softmax(1)
    weights = (settings.position_weight, settings.bilateral_weight)
    for _ in range(settings.iterations):
        energy = least.clone()
        for weight, kernel in zip(weights, kernels, strict=True):
            root = kernel(torch.ones_like(beliefs[:, :1])).sqrt()
            energy += weight * kernel(beliefs / root) / root
        beliefs = energy.softmax(1)
    return beliefs.t().view(probabilities.shape)


def both_features(image, settings):
    height, width = image.shape[1:]
    position = position_features(height, width, settings.position_sigma, image.device)
    colour = bilateral_features(image[None], settings.bilateral_sigma_rgb, settings.bilateral_sigma_xy)[0]
    return position, colour


def exact_kernel(features):
    matrix = (-torch.cdist(features, features).square() / 2).exp()
    return lambda values: matrix @ values


def lattice_kernel(features):
    lattice = PermutohedralLattice.build(features[None])
    return lambda values: lattice.filter(values[None])[0]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (CRF_SETTINGS["released"], "out_infv2"),
        (TEN.model_copy(update={"iterations": 1}), "out_inf_t1"),
        (TEN, "out_inf"),
    ],
)
def test_reference_numbers(golden, settings, name):
    arrays = golden("crf_K5")
    image = torch.from_numpy(arrays["in_img"]).permute(2, 0, 1)[None]
    beliefs = dense_crf(image, torch.from_numpy(arrays["in_prob"])[None], settings)
    torch.testing.assert_close(beliefs[0], torch.from_numpy(arrays[name]), rtol=0, atol=1e-4)


def test_near_the_exact_gaussian_sums():
    # Noisy probabilities, of which the bright and the dark parts of the image prefer one class each.
    image = smooth_images(1, 20, 24)
    bright = (image.mean(1) > image.mean()).float()
    preferred = torch.stack((bright, 1 - bright, 0 * bright, 0 * bright), 1)
    probabilities = (3 * random(1, 4, 20, 24, seed=2) + preferred).softmax(1)
    kernels = [exact_kernel(features) for features in both_features(image[0], SMALL)]
    expected = plain_crf(probabilities[0], SMALL, kernels)
    beliefs = dense_crf(image, probabilities, SMALL)[0]
    error, change = (beliefs - expected).abs().mean(), (probabilities[0] - expected).abs().mean()
    assert error < 0.1 * change
    assert change > 0.1
    before, after = (x.argmax(-3) == expected.argmax(0) for x in (probabilities[0], beliefs))
    assert after.float().mean() > 0.95
    assert before.float().mean() < 0.8


def test_one_iteration_by_hand():
    # Two pixels so far apart in colour that only the position kernel joins them, and that by the
    # lattice's own matrix; its symmetric normalisation is written out here.
    image = torch.zeros(1, 3, 1, 2)
    image[..., 1] = 255
    probabilities = torch.tensor([[[[0.9, 0.4]], [[0.1, 0.6]]]])
    settings = crf_config(1, 1.0, 2.0, 121.0, 1.0, 0.5)
    lattice = PermutohedralLattice.build(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))
    matrix = lattice.filter(torch.eye(2)[None])[0]
    gain = matrix.sum(1)
    position = matrix / (gain[:, None] * gain[None]).sqrt()
    assert position[0, 1] > 0.2
    beliefs = probabilities[0, :, 0].t()
    # A pixel alone in the colour kernel has D = G_ii, so its normalised kernel is 1.
    expected = (beliefs.log() + 2 * position @ beliefs + 0.5 * beliefs).softmax(1)
    torch.testing.assert_close(dense_crf(image, probabilities, settings)[0, :, 0].t(), expected)


def test_classes_that_are_nowhere_equal_the_plain_formulation():
    image = smooth_images(1, 12, 15, seed=3)
    probabilities = torch.zeros(1, 9, 12, 15)
    probabilities[:, [0, 4, 7]] = some_probabilities(1, 3, 12, 15, seed=4)
    kernels = [lattice_kernel(features) for features in both_features(image[0], SMALL)]
    beliefs = dense_crf(image, probabilities, SMALL)[0]
    torch.testing.assert_close(beliefs, plain_crf(probabilities[0], SMALL, kernels), rtol=1e-4, atol=1e-7)
    assert beliefs[[1, 2, 3, 5, 6, 8]].amax() > 0
    torch.testing.assert_close(beliefs.sum(0), torch.ones(12, 15))
    assert not set(beliefs.argmax(0).unique().tolist()) - {0, 4, 7}


def test_batch_equals_single_images():
    images = smooth_images(3, 10, 13, seed=5)
    probabilities = some_probabilities(3, 4, 10, 13, seed=6)
    probabilities[:, 3] = 0
    together = dense_crf(images, probabilities, SMALL)
    for index in range(3):
        alone = dense_crf(images[index][None], probabilities[index][None], SMALL)
        torch.testing.assert_close(together[index], alone[0])
    assert (together[0] - together[1]).abs().max() > 0.1


def test_one_build_serves_any_number_of_predictions_and_bytes_are_colours():
    images = smooth_images(1, 9, 11, seed=7).byte()
    crf = DenseCrf.build(images, SMALL)
    for seed in (8, 9):
        probabilities = some_probabilities(1, 3, 9, 11, seed=seed)
        assert torch.equal(crf.refine(probabilities), dense_crf(images.float(), probabilities, SMALL))


def test_an_edge_in_colour_corrects_a_ragged_prediction():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 255
    right = torch.full((1, 16, 16), 0.3)
    right[..., 6:] = 0.7
    beliefs = dense_crf(images, torch.stack((1 - right, right), 1), CrfConfig(bilateral_weight=10))
    truth = (torch.arange(16) >= 8).long().expand(1, 16, 16)
    assert torch.equal(beliefs.argmax(1), truth)


def test_without_kernels_the_probabilities_come_back():
    images, probabilities = smooth_images(1, 6, 7), some_probabilities(1, 3, 6, 7)
    settings = CrfConfig(position_weight=0, bilateral_weight=0)
    torch.testing.assert_close(dense_crf(images, probabilities, settings), probabilities)
    position_only = dense_crf(images, probabilities, CrfConfig(bilateral_weight=0))
    assert torch.equal(position_only, dense_crf(255 - images, probabilities, CrfConfig(bilateral_weight=0)))


def test_inference_mode_leaves_nothing_behind_that_fails_outside():
    images, probabilities = smooth_images(1, 5, 8, seed=10), some_probabilities(1, 2, 5, 8, seed=11)
    with torch.inference_mode():
        inside = dense_crf(images, probabilities)
    outside = dense_crf(images, probabilities.requires_grad_())
    assert torch.equal(inside, outside)
    assert not outside.requires_grad


@pytest.mark.parametrize("shape", [(1, 2, 4, 5), (2, 2, 4, 4), (2, 4, 4)])
def test_probabilities_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[1, K, 4, 4\]"):
        dense_crf(torch.zeros(1, 3, 4, 4), torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iterations": 0}, "iterations"),
        ({"position_sigma": 0.0}, "position_sigma"),
        ({"bilateral_sigma_rgb": float("nan")}, "bilateral_sigma_rgb"),
        ({"bilateral_sigma_xy": float("inf")}, "bilateral_sigma_xy"),
        ({"bilateral_weight": -1.0}, "bilateral_weight"),
        ({"position_weight": float("inf")}, "position_weight"),
    ],
)
def test_settings_that_cannot_be_computed_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        CrfConfig(**change)
