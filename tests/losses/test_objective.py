"""The objective: weights, terms, awkward crops, and independence of how a batch is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.pseudo_labels import Assignment, make_assignment
from cosa_dist.assignment.reliability import ReliablePixels
from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig, EnergyConfig, LossConfig, SeparationConfig
from cosa_dist.data.reading.loader import Batch
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.objective import (
    cam_to_seg_loss,
    classification_loss,
    classification_terms,
    co_training_terms,
    count_pixels,
    count_targets,
    loss_normalizers,
    seg_to_cam_loss,
    total_loss,
)
from cosa_dist.losses.separation import count_anchors, separation_loss
from cosa_dist.model.network import NetworkOutput
from tests.losses.objective_example import (
    CLASSES,
    GRID,
    SIZE,
    example_assignment,
    example_batch,
    example_output,
)

PLAIN = LossConfig()
WHOLE = LossConfig(separation=0.1)


def terms_of(output, batch, assignment, config=PLAIN):
    """The objective of a batch that is not cut into parts."""
    normalizers = loss_normalizers(count_targets(assignment), 1)
    return co_training_terms(output, batch, assignment, normalizers, config)


def part_of(whole, part):
    if isinstance(whole, Assignment):
        a = whole
        pixels = a.reliable_pixels
        return Assignment(
            a.cam_pseudo_label[part],
            a.aux_cam_pseudo_label[part],
            a.segmentation_pseudo_label[part],
            None if a.reliability is None else a.reliability[part],
            None if a.aux_reliability is None else a.aux_reliability[part],
            None if pixels is None else ReliablePixels(pixels.position[part], pixels.label[part]),
        )
    if isinstance(whole, Batch):
        batch = whole
        fields = ("ids", "positions", "weak", "strong", "labels", "boxes")
        return Batch(*(getattr(batch, name)[part] for name in fields))
    return NetworkOutput(*(value[part] for value in whole))


def test_weights_by_hand():
    names = ("classification", "aux_classification", "cam_to_seg", "aux_cam_to_seg")
    values = map(torch.tensor, (1.0, 2.0, 30.0, 50.0, 70.0, -11.0, 13.0))
    terms = dict(zip((*names, "seg_to_cam", "energy", "separation"), values, strict=True))
    expected = 1 + 2 + 0.1 * (0.5 * 30 + 0.5 * 50) + 0.05 * 70 + 0.05 * -11
    assert total_loss(terms, PLAIN).item() == pytest.approx(expected)
    weights = LossConfig(cam_to_seg=1.0, seg_to_cam=2.0, energy=3.0, aux_weight=0.25, separation=4.0)
    expected = 3 + (0.75 * 30 + 0.25 * 50) + 2 * 70 + 3 * -11 + 4 * 13
    assert total_loss(terms, weights).item() == pytest.approx(expected)


def test_classification_terms_differentiate_nothing_else():
    output, labels = example_output(2), example_batch(2).labels
    terms = classification_terms(output, labels)
    terms["total"].backward()
    expected = classification_loss(output.logits, labels)
    expected = expected + classification_loss(output.aux_logits, labels)
    torch.testing.assert_close(terms["total"], expected)
    gated = ("cam_to_seg", "aux_cam_to_seg", "seg_to_cam", "energy", "separation")
    assert [terms[name] for name in gated] == [0] * 5
    assert output.logits.grad.any()
    assert output.aux_logits.grad.any()
    assert output.segmentation.grad is None
    assert output.cam.grad is None


def test_co_training_terms_are_the_single_losses():
    output, assignment, batch = example_output(2), example_assignment(2), example_batch(2)
    config = LossConfig(energy_kernel=EnergyConfig(sigma_rgb=20.0, sigma_xy=50.0, weight=1e-3))
    terms = terms_of(output, batch, assignment, config)
    large = F.interpolate(output.segmentation, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    label, aux_label = assignment.cam_pseudo_label, assignment.aux_cam_pseudo_label
    expected = {
        "classification": classification_loss(output.logits, batch.labels),
        "aux_classification": classification_loss(output.aux_logits, batch.labels),
        "cam_to_seg": cam_to_seg_loss(large.log_softmax(1), label, count_pixels(label)),
        "aux_cam_to_seg": cam_to_seg_loss(large.log_softmax(1), aux_label, count_pixels(aux_label)),
        "seg_to_cam": seg_to_cam_loss(output.cam, assignment.segmentation_pseudo_label),
        "energy": dense_energy_loss(batch.strong, large, label, batch.boxes, config.energy_kernel),
        "separation": torch.zeros(()),
    }
    for name, value in expected.items():
        assert (value != 0) == (name != "separation")
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(terms["total"], total_loss(expected, config))
    assert list(terms) == list(classification_terms(output, batch.labels))


@pytest.mark.parametrize("space", ["cam", "features"])
def test_weights_and_separation_join_the_objective(space):
    output, assignment = example_output(2), example_assignment(2, whole=True)
    contrast = SeparationConfig(temperature=0.2, space=space)
    config = LossConfig(separation=0.1, separation_contrast=contrast)
    terms = terms_of(output, example_batch(2), assignment, config)
    large = F.interpolate(output.segmentation, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    label, weight = assignment.aux_cam_pseudo_label, assignment.aux_reliability
    weighted = cam_to_seg_loss(large.log_softmax(1), label, count_pixels(label, weight), weight)
    torch.testing.assert_close(terms["aux_cam_to_seg"], weighted)
    maps, pixels = output.cam if space == "cam" else output.features, assignment.reliable_pixels
    expected = separation_loss(maps, pixels, count_anchors(pixels), 0.2)
    torch.testing.assert_close(terms["separation"], expected)
    (gradient,) = torch.autograd.grad(terms["separation"], maps)
    assert gradient.any()


def test_separation_without_its_pixels_is_an_error():
    with pytest.raises(ValueError, match="reliable pixels"):
        terms_of(example_output(1), example_batch(1), example_assignment(1), WHOLE)


@pytest.mark.parametrize("name", ["cam_to_seg", "seg_to_cam", "energy", "separation"])
def test_each_part_can_be_switched_off_alone(name):
    output, assignment, batch = example_output(1), example_assignment(1, whole=True), example_batch(1)
    terms = terms_of(output, batch, assignment, WHOLE)
    without = terms_of(output, batch, assignment, WHOLE.model_copy(update={name: 0.0}))
    for other, value in terms.items():
        if other.endswith(name):
            assert (value != 0, without[other]) == (True, 0)
        elif other != "total":
            torch.testing.assert_close(without[other], value)


def test_each_loss_reaches_its_part_of_the_network():
    output = example_output(2)
    terms_of(output, example_batch(2), example_assignment(2))["total"].backward()
    for name in ("logits", "aux_logits", "cam", "segmentation"):
        assert getattr(output, name).grad.any(), name
    assert output.aux_cam.grad is None


def test_an_energy_without_weight_is_not_computed():
    output, assignment, batch = example_output(1), example_assignment(1), example_batch(1)
    broken = dataclasses.replace(batch, strong=batch.strong[:, :, :1])
    assert terms_of(output, broken, assignment, LossConfig(energy=0.0))["energy"] == 0
    with pytest.raises(ValueError, match="images"):
        terms_of(output, broken, assignment)


@pytest.mark.parametrize("whole_method", [False, True])
def test_the_mean_over_parts_is_the_objective_of_the_whole(whole_method):
    output, batch = example_output(4), example_batch(4)
    assignment = example_assignment(4, whole=whole_method)
    assignment.cam_pseudo_label[0] = 255
    if whole_method:
        assignment.reliability[0] = 0.0
        assignment.reliable_pixels.label[0] = 255
    config = WHOLE if whole_method else PLAIN
    whole = terms_of(output, batch, assignment, config)
    read = (output.segmentation, output.cam)
    whole_gradients = torch.autograd.grad(whole["total"], read, retain_graph=True)
    slices = (slice(0, 2), slice(2, 4))
    total = torch.stack([count_targets(part_of(assignment, part)) for part in slices]).sum(0)
    parts = [
        co_training_terms(
            part_of(output, part),
            part_of(batch, part),
            part_of(assignment, part),
            loss_normalizers(total, 2),
            config,
        )
        for part in slices
    ]
    for name, value in whole.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(mean, value, msg=lambda text, name=name: f"{name}: {text}")
    gradients = torch.autograd.grad((parts[0]["total"] + parts[1]["total"]) / 2, read)
    for gradient, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("whole_method", [False, True])
@pytest.mark.parametrize("case", ["without labels", "empty box", "everything ignored"])
def test_awkward_crops_give_finite_losses_and_gradients(case, whole_method):
    batch = example_batch(1)
    low, high = (0.0, 1.0) if case == "everything ignored" else (0.25, 0.7)
    batch.labels[:] = 0.0 if case == "without labels" else 1.0
    if case == "empty box":
        batch.boxes[0] = torch.tensor([5, 5, 0, SIZE])
    seen = MultiScaleOutput(
        cam=torch.rand(1, CLASSES, SIZE, SIZE),
        aux_cam=torch.rand(1, CLASSES, SIZE, SIZE),
        segmentation=torch.randn(1, CLASSES + 1, SIZE, SIZE) * 10,
        logits=torch.zeros(1, CLASSES),
        aux_logits=torch.zeros(1, CLASSES),
    )
    assignment = make_assignment(
        seen,
        batch.labels,
        batch.boxes,
        Thresholds(Threshold(low, high), Threshold(low, high)),
        (GRID, GRID),
        AssignmentConfig(reliability=whole_method),
        separation=SeparationConfig() if whole_method else None,
        count_activations=whole_method,
    )
    expected_labels = {"without labels": {0, 255}}.get(case, {255})
    assert set(assignment.cam_pseudo_label.unique().tolist()) == expected_labels
    output = example_output(1)
    terms = terms_of(output, batch, assignment, WHOLE if whole_method else PLAIN)
    terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    for name in ("logits", "aux_logits", "cam", "segmentation"):
        assert getattr(output, name).grad.isfinite().all(), name


def test_reduced_precision_ends_at_the_networks_output():
    output, assignment, batch = example_output(1), example_assignment(1, whole=True), example_batch(1)
    reduced = NetworkOutput(*(value.detach().bfloat16() for value in output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(reduced, batch, assignment, WHOLE)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    same = NetworkOutput(*(value.float() for value in reduced))
    torch.testing.assert_close(terms, terms_of(same, batch, assignment, WHOLE))
