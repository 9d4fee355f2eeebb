"""The objective: weights, terms, awkward crops, and independence of how a batch is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.pseudo_labels import Assignment, AssignmentSettings, make_assignment
from cosa_dist.assignment.reliable_pixels import ReliablePixels, SelectionSettings
from cosa_dist.assignment.threshold import ThresholdPair, Thresholds
from cosa_dist.losses.cam_to_seg import cam_to_seg_loss
from cosa_dist.losses.classification import classification_loss
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.normalisers import countings, normalisers
from cosa_dist.losses.objective import (
    EnergySettings,
    LossTerms,
    LossWeights,
    SeparationSettings,
    classification_terms,
    co_training_terms,
    combine,
)
from cosa_dist.losses.seg_to_cam import seg_to_cam_loss
from cosa_dist.losses.separation import separation_loss
from cosa_dist.model.network import NetworkOutput
from tests.losses.objective_example import (
    CLASSES,
    GRID,
    SIZE,
    example_assignment,
    example_inputs,
    example_output,
)


def part_of(named_tuple_or_assignment, part):
    if isinstance(named_tuple_or_assignment, Assignment):
        a = named_tuple_or_assignment
        pixels = a.reliable_pixels
        return Assignment(
            a.cam_pseudo_label[part],
            a.aux_cam_pseudo_label[part],
            a.segmentation_pseudo_label[part],
            None if a.reliability is None else a.reliability[part],
            None if a.aux_reliability is None else a.aux_reliability[part],
            None if pixels is None else ReliablePixels(pixels.position[part], pixels.label[part]),
        )
    return NetworkOutput(*(value[part] for value in named_tuple_or_assignment))


def scalars(*values):
    return [torch.tensor(value) for value in values]


def test_weights_by_hand():
    names = ("classification", "aux_classification", "cam_to_seg", "aux_cam_to_seg")
    values = scalars(1.0, 2.0, 30.0, 50.0, 70.0, -11.0, 13.0)
    given = dict(zip((*names, "seg_to_cam", "energy", "separation"), values, strict=True))
    terms = combine(**given, weights=LossWeights())
    expected = 1 + 2 + 0.1 * (0.5 * 30 + 0.5 * 50) + 0.05 * 70 + 0.05 * -11
    assert terms.total.item() == pytest.approx(expected)
    weights = LossWeights(cam_to_seg=1.0, seg_to_cam=2.0, energy=3.0, aux_weight=0.25, separation=4.0)
    expected = 3 + (0.75 * 30 + 0.25 * 50) + 2 * 70 + 3 * -11 + 4 * 13
    assert combine(**given, weights=weights).total.item() == pytest.approx(expected)


def test_classification_terms_differentiate_nothing_else():
    output = example_output(2)
    labels, _, _ = example_inputs(2)
    terms = classification_terms(output, labels)
    terms.total.backward()
    expected = classification_loss(output.logits, labels)
    expected = expected + classification_loss(output.aux_logits, labels)
    torch.testing.assert_close(terms.total, expected)
    gated = (terms.cam_to_seg, terms.aux_cam_to_seg, terms.seg_to_cam, terms.energy, terms.separation)
    assert gated == (0,) * 5
    assert output.logits.grad.any()
    assert output.aux_logits.grad.any()
    assert output.segmentation.grad is None
    assert output.cam.grad is None


def test_co_training_terms_are_the_single_losses():
    output, assignment = example_output(2), example_assignment(2)
    labels, strong, boxes = example_inputs(2)
    settings = EnergySettings(sigma_rgb=20.0, sigma_xy=50.0, weight=1e-3)
    terms = co_training_terms(output, labels, assignment, strong, boxes, energy=settings)
    large = F.interpolate(output.segmentation, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    expected = {
        "classification": classification_loss(output.logits, labels),
        "aux_classification": classification_loss(output.aux_logits, labels),
        "cam_to_seg": cam_to_seg_loss(large, assignment.cam_pseudo_label),
        "aux_cam_to_seg": cam_to_seg_loss(large, assignment.aux_cam_pseudo_label),
        "seg_to_cam": seg_to_cam_loss(output.cam, assignment.segmentation_pseudo_label),
        "energy": dense_energy_loss(
            strong,
            large,
            assignment.cam_pseudo_label,
            boxes,
            sigma_rgb=20.0,
            sigma_xy=50.0,
            scale=0.5,
            weight=1e-3,
        ),
    }
    for name, value in expected.items():
        assert value != 0
        torch.testing.assert_close(getattr(terms, name), value)
    assert terms.separation == 0
    total = combine(**expected, separation=torch.zeros(()), weights=LossWeights()).total
    torch.testing.assert_close(terms.total, total)


@pytest.mark.parametrize("space", ["cam", "features"])
def test_weights_and_separation_join_the_objective(space):
    output, assignment = example_output(2), example_assignment(2, whole=True)
    labels, strong, boxes = example_inputs(2)
    terms = co_training_terms(
        output,
        labels,
        assignment,
        strong,
        boxes,
        weights=LossWeights(separation=0.1),
        separation=SeparationSettings(temperature=0.2, space=space),
    )
    large = F.interpolate(output.segmentation, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    weighted = cam_to_seg_loss(large, assignment.aux_cam_pseudo_label, None, assignment.aux_reliability)
    torch.testing.assert_close(terms.aux_cam_to_seg, weighted)
    maps = output.cam if space == "cam" else output.features
    expected = separation_loss(maps, assignment.reliable_pixels, temperature=0.2)
    torch.testing.assert_close(terms.separation, expected)
    (gradient,) = torch.autograd.grad(terms.separation, maps)
    assert gradient.any()


def test_separation_without_its_pixels_is_an_error():
    output, assignment = example_output(1), example_assignment(1)
    with pytest.raises(ValueError, match="reliable pixels"):
        co_training_terms(
            output,
            *example_inputs(1)[:1],
            assignment,
            *example_inputs(1)[1:],
            weights=LossWeights(separation=1),
        )


@pytest.mark.parametrize("name", ["cam_to_seg", "seg_to_cam", "energy", "separation"])
def test_each_part_can_be_switched_off_alone(name):
    output, assignment = example_output(1), example_assignment(1, whole=True)
    labels, strong, boxes = example_inputs(1)
    every = LossWeights(separation=0.1)
    terms = co_training_terms(output, labels, assignment, strong, boxes, weights=every).as_dict()
    fewer = dataclasses.replace(every, **{name: 0.0})
    without = co_training_terms(output, labels, assignment, strong, boxes, weights=fewer).as_dict()
    for other, value in terms.items():
        if other.endswith(name):
            assert (value != 0, without[other]) == (True, 0)
        elif other != "total":
            torch.testing.assert_close(without[other], value)


def test_each_loss_reaches_its_part_of_the_network():
    output, assignment = example_output(2), example_assignment(2)
    labels, strong, boxes = example_inputs(2)
    co_training_terms(output, labels, assignment, strong, boxes).total.backward()
    for name in ("logits", "aux_logits", "cam", "segmentation"):
        assert getattr(output, name).grad.any(), name
    assert output.aux_cam.grad is None


def test_an_energy_without_weight_is_not_computed():
    output, assignment = example_output(1), example_assignment(1)
    labels, strong, boxes = example_inputs(1)
    weights = LossWeights(energy=0.0)
    terms = co_training_terms(output, labels, assignment, strong[:, :, :1], boxes, weights=weights)
    assert terms.energy == 0
    with pytest.raises(ValueError, match="images"):
        co_training_terms(output, labels, assignment, strong[:, :, :1], boxes)


@pytest.mark.parametrize("whole_method", [False, True])
def test_the_mean_over_parts_is_the_objective_of_the_whole(whole_method):
    output, assignment = example_output(4), example_assignment(4, whole=whole_method)
    labels, strong, boxes = example_inputs(4)
    assignment.cam_pseudo_label[0] = 255
    if whole_method:
        assignment.reliability[0] = 0.0
        assignment.reliable_pixels.label[0] = 255
    weights = LossWeights(separation=0.1 if whole_method else 0.0)
    whole = co_training_terms(output, labels, assignment, strong, boxes, weights=weights)
    read = (output.segmentation, output.cam)
    whole_gradients = torch.autograd.grad(whole.total, read, retain_graph=True)
    slices = (slice(0, 2), slice(2, 4))
    total = torch.stack([countings(part_of(assignment, part)) for part in slices]).sum(0)
    parts = [
        co_training_terms(
            part_of(output, part),
            labels[part],
            part_of(assignment, part),
            strong[part],
            boxes[part],
            divide_by=normalisers(total, 2),
            weights=weights,
        )
        for part in slices
    ]
    for name, value in whole.as_dict().items():
        mean = (parts[0].as_dict()[name] + parts[1].as_dict()[name]) / 2
        torch.testing.assert_close(mean, value, msg=lambda text, name=name: f"{name}: {text}")
    gradients = torch.autograd.grad((parts[0].total + parts[1].total) / 2, read)
    for gradient, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("whole_method", [False, True])
@pytest.mark.parametrize("case", ["without labels", "empty box", "everything ignored"])
def test_awkward_crops_give_finite_losses_and_gradients(case, whole_method):
    labels, strong, boxes = example_inputs(1)
    low, high = (0.0, 1.0) if case == "everything ignored" else (0.25, 0.7)
    labels[:] = 0.0 if case == "without labels" else 1.0
    if case == "empty box":
        boxes[0] = torch.tensor([5, 5, 0, SIZE])
    seen = MultiScaleOutput(
        cam=torch.rand(1, CLASSES, SIZE, SIZE),
        aux_cam=torch.rand(1, CLASSES, SIZE, SIZE),
        segmentation=torch.randn(1, CLASSES + 1, SIZE, SIZE) * 10,
        logits=torch.zeros(1, CLASSES),
        aux_logits=torch.zeros(1, CLASSES),
    )
    pair = ThresholdPair(low, high)
    settings = AssignmentSettings()
    if whole_method:
        settings = AssignmentSettings(weigh=True, selection=SelectionSettings(), count_activations=True)
    assignment = make_assignment(seen, labels, boxes, Thresholds(pair, pair), (GRID, GRID), settings)
    expected_labels = {"without labels": {0, 255}}.get(case, {255})
    assert set(assignment.cam_pseudo_label.unique().tolist()) == expected_labels
    output = example_output(1)
    weights = LossWeights(separation=0.1 if whole_method else 0.0)
    terms = co_training_terms(output, labels, assignment, strong, boxes, weights=weights)
    terms.total.backward()
    assert all(value.isfinite() for value in terms.as_dict().values())
    for name in ("logits", "aux_logits", "cam", "segmentation"):
        assert getattr(output, name).grad.isfinite().all(), name


def test_as_dict_is_detached_and_complete():
    values = [value.requires_grad_() for value in scalars(*map(float, range(8)))]
    logged = LossTerms(*values).as_dict()
    assert list(logged) == list(LossTerms.__dataclass_fields__)
    assert [float(value) for value in logged.values()] == list(map(float, range(8)))
    assert not any(value.requires_grad for value in logged.values())


def test_reduced_precision_ends_at_the_networks_output():
    output, assignment = example_output(1), example_assignment(1, whole=True)
    every = LossWeights(separation=0.1)
    labels, strong, boxes = example_inputs(1)
    reduced = NetworkOutput(*(value.detach().bfloat16() for value in output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = co_training_terms(reduced, labels, assignment, strong, boxes, weights=every)
    assert {value.dtype for value in terms.as_dict().values()} == {torch.float32}
    same = NetworkOutput(*(value.float() for value in reduced))
    torch.testing.assert_close(
        terms.as_dict(), co_training_terms(same, labels, assignment, strong, boxes, weights=every).as_dict()
    )
