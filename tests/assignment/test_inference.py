"""The multi-scale pass against the reference numbers and against a plain formulation."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.inference import multi_scale


def tensors(archive):
    """The archive's numbers as tensors, without its description."""
    return {key: torch.from_numpy(v) for key, v in archive.items() if v.dtype.kind in "fiu"}


class PooledNetwork:
    """The reference numbers' fake network: 1x1 convolutions on an average pool of 8."""

    def __init__(self, w_cam, w_aux, w_seg):
        self.w_cam, self.w_aux, self.w_seg = w_cam, w_aux, w_seg
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(tuple(images.shape))
        pooled = F.avg_pool2d(images, 8)
        cam = F.conv2d(pooled, self.w_cam)
        aux_cam = F.conv2d(pooled**2, self.w_aux)
        return SimpleNamespace(
            logits=cam.amax((2, 3)),
            aux_logits=aux_cam.amax((2, 3)),
            cam=cam,
            aux_cam=aux_cam,
            segmentation=F.conv2d(pooled, self.w_seg),
        )


def random_network(classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return PooledNetwork(
        *(torch.randn(n, 3, 1, 1, generator=generator) for n in (classes, classes, classes + 1))
    )


def plain_multi_scale(network, images, scales, last_only=False):
    """The formulas written down one by one, one image and one view at a time."""

    def enlarge(maps):
        size = images.shape[-2:]
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    cams, aux_cams, segmentations, logits, aux_logits = [], [], [], [], []
    for scale in scales:
        size = tuple(int(scale * side) for side in images.shape[-2:])
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        plain, mirror = network(resized), network(resized.flip(-1))
        cams.append(torch.maximum(enlarge(plain.cam), enlarge(mirror.cam).flip(-1)).relu())
        aux = torch.maximum(enlarge(plain.aux_cam), enlarge(mirror.aux_cam).flip(-1)).relu()
        aux_cams = [aux] if last_only else [*aux_cams, aux]
        segmentations += [enlarge(plain.segmentation), enlarge(mirror.segmentation).flip(-1)]
        logits += [plain.logits, mirror.logits]
        aux_logits += [plain.aux_logits, mirror.aux_logits]

    def stretch(maps):
        total = sum(maps)
        low = total.flatten(2).min(2).values[..., None, None]
        high = total.flatten(2).max(2).values[..., None, None]
        return (total - low) / (high - low + 1e-5)

    def mean(values):
        return sum(values) / len(values)

    return SimpleNamespace(
        cam=stretch(cams),
        aux_cam=stretch(aux_cams),
        segmentation=sum(segmentations),
        logits=mean(logits),
        aux_logits=mean(aux_logits),
    )


FIELDS = ("cam", "aux_cam", "segmentation", "logits", "aux_logits")


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("multi_scale_camseg_1_05_15", [1.0, 0.5, 1.5]),
        ("multi_scale_camsegv3_eval", [1.0, 0.5, 1.5, 0.75, 1.25]),
    ],
)
def test_reference_numbers(golden, name, scales):
    data = tensors(golden(name))
    network = PooledNetwork(data["in_w_cam"], data["in_w_aux"], data["in_w_seg"])
    output = multi_scale(network, data["in_x"], scales, aux_cam_last_scale_only=True)
    torch.testing.assert_close(output.cam, data["out_cam"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.aux_cam, data["out_cam_aux"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.segmentation, data["out_seg"], atol=1e-5, rtol=1e-5)
    views = 2 * len(scales)
    for ours, released in ((output.logits, "out_cls"), (output.aux_logits, "out_cls_aux")):
        if released in data:  # the released code sums over the views
            torch.testing.assert_close(ours * views, data[released], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("last_only", [False, True])
def test_equals_the_plain_formulation(last_only):
    network, images = random_network(), torch.randn(3, 3, 56, 72)
    scales = [1.0, 0.5, 1.5]
    output = multi_scale(network, images, scales, aux_cam_last_scale_only=last_only)
    expected = plain_multi_scale(network, images, scales, last_only)
    for field in FIELDS:
        torch.testing.assert_close(getattr(output, field), getattr(expected, field))


def test_outputs_that_share_their_memory_are_summed_apart_and_stay_as_they_are():
    """A segmenter gives one tensor as main and auxiliary logits; without mirror images nothing copies it."""
    given = []

    def network(images):
        output = random_network()(images)
        output.aux_logits = output.logits
        given.append((output, output.logits.clone(), output.segmentation.clone()))
        return output

    output = multi_scale(network, torch.randn(1, 3, 32, 48), [1.0, 0.5], flip=False)
    expected = torch.stack([logits for _, logits, _ in given]).mean(0)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.aux_logits, expected)
    for seen, logits, segmentation in given:
        assert torch.equal(seen.logits, logits)
        assert torch.equal(seen.segmentation, segmentation)


def test_every_scale_counts_for_the_auxiliary_cam():
    network, images = random_network(), torch.randn(1, 3, 56, 72)
    every = multi_scale(network, images, [1.0, 0.5, 1.5]).aux_cam
    last = multi_scale(network, images, [1.0, 0.5, 1.5], aux_cam_last_scale_only=True).aux_cam
    assert (every - last).abs().max() > 0.01


def test_labels_only_zero_the_absent_classes():
    network, images = random_network(), torch.randn(4, 3, 56, 72)
    labels = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1.0]])
    whole = multi_scale(network, images, [1.0, 0.5])
    filtered = multi_scale(network, images, [1.0, 0.5], labels=labels)
    torch.testing.assert_close(filtered.cam, whole.cam * labels[:, :, None, None])
    torch.testing.assert_close(filtered.aux_cam, whole.aux_cam * labels[:, :, None, None])
    torch.testing.assert_close(filtered.segmentation, whole.segmentation)
    torch.testing.assert_close(filtered.logits, whole.logits)


def test_a_batch_without_any_label_gives_zero_cams():
    output = multi_scale(random_network(), torch.randn(2, 3, 16, 16), [1.0], labels=torch.zeros(2, 5))
    assert output.cam.shape == (2, 5, 16, 16)
    assert not output.cam.any()


def test_one_batch_per_scale_of_the_sizes_rounded_down():
    network = random_network()
    multi_scale(network, torch.randn(2, 3, 57, 75), [1.0, 0.5, 1.5])
    assert network.sizes == [(4, 3, 57, 75), (4, 3, 28, 37), (4, 3, 85, 112)]


def test_mirror_images_may_have_a_pass_of_their_own():
    together, apart, images = random_network(), random_network(), torch.randn(2, 3, 56, 72)
    expected = multi_scale(together, images, [1.0, 0.5])

    def named(views):
        output = vars(apart(views))
        return namedtuple("Output", output)(**output)

    output = multi_scale(named, images, [1.0, 0.5], in_turn=True)
    assert apart.sizes == [(2, 3, 56, 72)] * 2 + [(2, 3, 28, 36)] * 2
    for field in FIELDS:
        torch.testing.assert_close(getattr(output, field), getattr(expected, field))


def test_without_flip_one_view_per_scale():
    network, images = random_network(), torch.randn(2, 3, 32, 32)
    output = multi_scale(network, images, [1.0], flip=False)
    assert network.sizes == [(2, 3, 32, 32)]
    single = network(images)
    expected = F.interpolate(single.segmentation, size=(32, 32), mode="bilinear")
    torch.testing.assert_close(output.segmentation, expected)
    torch.testing.assert_close(output.logits, single.logits)


def test_reduced_precision_of_the_network_ends_at_its_output():
    network = random_network()

    def in_bfloat16(images):
        output = network(images)
        return SimpleNamespace(**{name: getattr(output, name).bfloat16() for name in FIELDS})

    output = multi_scale(in_bfloat16, torch.randn(1, 3, 32, 32), [1.0, 0.5])
    assert {getattr(output, field).dtype for field in FIELDS} == {torch.float32}


def test_no_gradient_is_recorded():
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not multi_scale(random_network(), images, [1.0]).segmentation.requires_grad


def test_images_without_gradients_are_left_alone():
    network, images = random_network(), torch.randn(1, 3, 32, 32)
    before = images.clone()
    multi_scale(network, images, [1.0, 0.5], flip=False)
    assert torch.equal(images, before)
