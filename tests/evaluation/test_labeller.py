"""The pseudo-labels of one whole image, as pictures show them, on a network whose answers are known."""

from __future__ import annotations

import pytest
import torch
from colour_network import ColourNetwork
from test_evaluator import one_image

from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig
from cosa_dist.evaluation.evaluator import evaluation_mode
from cosa_dist.evaluation.pictures import ImageLabels, Labeller, label_image


def labeller_of(network: ColourNetwork, border: float, **settings: object) -> Labeller:
    threshold = Threshold(border, border, single=True)
    config = AssignmentConfig(flip=False, **settings)
    return Labeller(network, 1, Thresholds(threshold, threshold), config)


def labelled(border: float = 0.5, size: int = 8, **settings: bool) -> ImageLabels:
    network = ColourNetwork()
    labeller = labeller_of(network, border, scales=(1.0,), **settings)
    with evaluation_mode([network]), torch.inference_mode():
        return label_image(labeller, one_image(), size, torch.device("cpu"))


def test_only_the_tagged_class_is_labelled():
    found = labelled()
    # The image is red on its left half; green and blue on the right are not among its tags.
    expected = torch.zeros(8, 8, dtype=torch.int64)
    expected[:, :4] = 1
    assert torch.equal(found.cam_label, expected)
    assert torch.equal(found.segmentation_label, expected)
    assert torch.allclose(found.cam, expected.float(), atol=1e-4)
    assert torch.allclose(found.aux_cam, expected.float(), atol=1e-4)


def test_weights_have_mean_one_on_either_side_whether_or_not_the_losses_use_them():
    for used in (False, True):
        found = labelled(0.4, reliability=used)
        foreground = found.cam_label > 0
        assert found.weight[foreground].mean() == pytest.approx(1.0)
        assert found.weight[~foreground].mean() == pytest.approx(1.0)


def test_maps_come_back_at_the_images_own_size():
    found = labelled(size=16)
    maps = (found.cam, found.aux_cam, found.cam_label, found.segmentation_label, found.weight)
    assert {tuple(plane.shape) for plane in maps} == {(8, 8)}
    assert found.cam_label[:, :3].eq(1).all()
    assert found.cam_label[:, 5:].eq(0).all()


def test_an_image_without_tags_is_background():
    sample = one_image()
    network = ColourNetwork().eval()
    labeller = labeller_of(network, 0.5, scales=(1.0, 0.5))
    untagged = type(sample)(id="none", image=sample.image, mask=None, labels=torch.zeros(3), context=None)
    with torch.inference_mode():
        found = label_image(labeller, untagged, 8, torch.device("cpu"))
    assert found.cam_label.eq(0).all()
    assert found.segmentation_label.eq(0).all()
    assert found.weight.isfinite().all()
