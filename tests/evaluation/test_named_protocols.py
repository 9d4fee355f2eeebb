"""Named protocols: each against what its repository's script does, written down view by view."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_network import CLASSES, colour_sample
from torch import Tensor, nn

from cosa_dist.config.schema import CrfConfig, EvaluationConfig
from cosa_dist.data.reading.loader import EvalSample
from cosa_dist.data.reading.views import normalise
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.evaluation.protocols import summed_views
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.model.network import NetworkOutput

PATCH = 16
NAMES = ("cosa", "one_view", "toco", "seco", "more", "excel", "weclip")
CRF_NUMBERS = {
    "cosa": (1, 1, 1, 121, 5, 4),
    "one_view": (1, 1, 1, 121, 5, 4),
    "toco": (10, 1, 1, 121, 5, 4),
    "seco": (10, 1, 1, 121, 5, 4),
    "more": (10, 1, 3, 67, 3, 4),
    "excel": (10, 1, 3, 67, 3, 4),
    "weclip": (10, 3, 3, 64, 5, 4),
}
"""iterations; position sigma and weight; bilateral sigma of place and colour, and weight"""


class PatchNetwork(nn.Module):
    """Patches of 16 pixels, looked at apart; unlike `plain_forward`, it refuses parts of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(stride=PATCH, any_size=False)
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(len(CLASSES) + 1, 3, PATCH, PATCH, generator=generator) / PATCH

    def forward(self, images: Tensor) -> NetworkOutput:
        assert not any(side % PATCH for side in images.shape[-2:])
        maps = plain_forward(self, images)
        cam = maps[:, 1:]
        return NetworkOutput(cam.amax((2, 3)), cam.amax((2, 3)), cam, cam, maps, maps)


def plain_forward(network: PatchNetwork, images: Tensor) -> Tensor:
    """Segmentation logits `[B, K, h, w]`; a convolution drops the parts of patches at the right and below."""
    return F.conv2d(images, network.weight, stride=PATCH)


def to(maps: Tensor, *size: int) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def plain_logits(name: str, network: PatchNetwork, image: Tensor) -> Tensor:
    """Merged logits `[K, H, W]` of an image `[3, H, W]`."""

    def pair(view: Tensor, *size: int) -> tuple[Tensor, Tensor]:
        mirrored = plain_forward(network, view.flip(-1))
        return to(plain_forward(network, view), *size), to(mirrored, *size).flip(-1)

    x = normalise(image)[None]
    height, width = x.shape[-2:]
    square, merged = to(x, 448, 448), []
    match name:
        case "cosa":
            for side in (448, 224, 672, 336, 560):
                merged += pair(to(square, side, side), 448, 448)
            return to(sum(merged), height, width)[0]
        case "one_view":
            return to(plain_forward(network, square), height, width)[0]
        case "toco":
            for scale in (1, 1.5, 1.25):
                merged.append(sum(pair(to(x, int(height * scale), int(width * scale)), height, width)))
            return torch.stack(merged).amax(0)[0]
        case "seco" | "more":
            for side in (448, 560, 672):
                merged.append(sum(pair(to(x, side, side), height, width)))
            return torch.stack(merged).amax(0)[0]
        case "excel":
            merged = [to(plain_forward(network, to(x, 320, 320)), height, width)]
            for side in (224, 384, 480):
                merged.append(sum(pair(to(x, side, side), height, width)) / 2)
            return torch.stack(merged).mean(0)[0]
        case "weclip":
            ratio = 512 / max(height, width)
            resized = to(x, int(height * ratio), int(width * ratio))
            grid = plain_forward(network, resized).shape[-2:]
            small = to(resized, *(int(side * 0.75) for side in resized.shape[-2:]))
            means = [sum(pair(view, *grid)) / 2 for view in (resized, small)]
            return to(torch.stack(means).mean(0), height, width)[0]
    raise AssertionError(name)


def samples() -> list[EvalSample]:
    """Photographs' stand-ins of two sizes, none a multiple of the patch: blocks of colour and noise."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for number, size in enumerate([(75, 101), (90, 59)]):
        blocks = torch.randint(0, 256, (1, 3, 4, 4), generator=generator).float()
        noise = torch.randn(3, *size, generator=generator) * 8
        image = (F.interpolate(blocks, size=size)[0] + noise).clamp(0, 255).to(torch.uint8)
        truth = F.interpolate(torch.randint(0, 4, (1, 1, 5, 5), generator=generator).float(), size=size)
        made.append(colour_sample(str(number), image, truth[0, 0].to(torch.uint8), [1, 2, 3]))
    return made


def plain_miou(predictions: list[Tensor], masks: list[Tensor]) -> float:
    predicted, truth = (
        np.concatenate([each.numpy().ravel() for each in maps]) for maps in (predictions, masks)
    )
    both = [
        ((predicted == k) & (truth == k)).sum() / ((predicted == k) | (truth == k)).sum() for k in range(4)
    ]
    return float(np.mean(both)) * 100


@pytest.mark.parametrize("name", NAMES)
def test_a_named_protocol_is_what_its_repository_does(name):
    network, images = PatchNetwork(), samples()
    config = EvaluationConfig.model_validate({"protocol": name, "crf": {"enabled": True}})
    report = Evaluator(CLASSES, config).evaluate({"online": network}, images)["online"]
    logits = [plain_logits(name, network, sample.image) for sample in images]
    masks = [sample.mask for sample in images if sample.mask is not None]
    assert report.miou() == pytest.approx(plain_miou([each.argmax(0) for each in logits], masks), abs=0.02)

    keys = ("iterations", "position_sigma", "position_weight")
    keys += ("bilateral_sigma_xy", "bilateral_sigma_rgb", "bilateral_weight")
    numbers = CrfConfig.model_validate(dict(zip(keys, CRF_NUMBERS[name], strict=True)))
    refined = [
        DenseCrf.build(sample.image[None], numbers).refine(each.softmax(0)[None])[0].argmax(0)
        for sample, each in zip(images, logits, strict=True)
    ]
    assert report.scores["unfiltered_crf"].miou == pytest.approx(plain_miou(refined, masks), abs=0.1)
    assert report.settings["words"] == config.words


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_the_protocol_and_their_probabilities_of_a_mean_of_views(name):
    network, images = PatchNetwork(), samples()
    config = EvaluationConfig.model_validate({"protocol": name})
    segmenting = Segmenting(network, config, torch.device("cpu"), precision="fp32", probabilities=True)
    for sample, found in zip(images, segmenting([sample.image for sample in images]), strict=True):
        logits = plain_logits(name, network, sample.image)
        assert (torch.from_numpy(found.classes) == logits.argmax(0)).float().mean() > 0.999
        expected = (logits / summed_views(config)).softmax(0)
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, expected, atol=2e-3)


def test_protocols_tell_networks_apart_otherwise():
    """The plain formulations are not all the same, or the tests above would prove nothing."""
    network, (sample, _) = PatchNetwork(), samples()
    maps = {name: plain_logits(name, network, sample.image).argmax(0) for name in NAMES}
    differing = {(a, b) for a in NAMES for b in NAMES if a < b and torch.equal(maps[a], maps[b])}
    assert differing == {("more", "seco")}


def test_views_that_the_logits_are_the_sum_of():
    counted = {name: summed_views(EvaluationConfig.model_validate({"protocol": name})) for name in NAMES}
    assert counted == {"cosa": 10, "one_view": 1, "toco": 2, "seco": 2, "more": 2, "excel": 1, "weclip": 1}


def test_crfs_by_name_are_those_of_the_protocols():
    for crf, protocol in {"released": "cosa", "toco": "toco", "more": "more", "weclip": "weclip"}.items():
        numbers = CRF_SETTINGS[crf].model_dump()
        assert numbers.pop("enabled")
        assert tuple(numbers.values()) == CRF_NUMBERS[protocol]
