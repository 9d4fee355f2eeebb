"""The objective: weights, terms, awkward crops, and independence of how a batch is cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.assignment.pseudo_labels import Assignment, make_assignment
from cosa_dist.assignment.threshold import ThresholdPair
from cosa_dist.losses.cam_to_seg import cam_to_seg_loss, count_pixels
from cosa_dist.losses.classification import classification_loss
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.objective import (
    EnergySettings,
    LossTerms,
    LossWeights,
    classification_terms,
    co_training_terms,
    combine,
)
from cosa_dist.losses.seg_to_cam import seg_to_cam_loss
from cosa_dist.model.network import NetworkOutput

SIZE, GRID, CLASSES = 32, 4, 3


def example_output(images, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    return NetworkOutput(
        logits=draw(images, CLASSES),
        aux_logits=draw(images, CLASSES),
        cam=draw(images, CLASSES, GRID, GRID),
        aux_cam=draw(images, CLASSES, GRID, GRID),
        segmentation=draw(images, CLASSES + 1, GRID, GRID),
        features=draw(images, 8, GRID, GRID),
    )


def example_assignment(images, seed=1):
    generator = torch.Generator().manual_seed(seed)
    names = torch.tensor([0, 0, 1, 2, 3, 255])

    def label():
        return names[torch.randint(0, 6, (images, SIZE, SIZE), generator=generator)]

    target = torch.rand(images, CLASSES, GRID, GRID, generator=generator)
    return Assignment(label(), label(), target)


def example_inputs(images, seed=2):
    generator = torch.Generator().manual_seed(seed)
    strong = torch.rand(images, 3, SIZE, SIZE, generator=generator) * 255
    labels = (torch.rand(images, CLASSES, generator=generator) < 0.5).float()
    boxes = torch.tensor([[0, SIZE, 3, SIZE]] * images)
    return labels, strong, boxes


def part_of(named_tuple_or_assignment, part):
    if isinstance(named_tuple_or_assignment, Assignment):
        a = named_tuple_or_assignment
        return Assignment(
            a.cam_pseudo_label[part],
            a.aux_cam_pseudo_label[part],
            a.segmentation_pseudo_label[part],
        )
    return NetworkOutput(*(value[part] for value in named_tuple_or_assignment))


def scalars(*values):
    return [torch.tensor(value) for value in values]


def test_weights_by_hand():
    names = ("classification", "aux_classification", "cam_to_seg", "aux_cam_to_seg")
    values = scalars(1.0, 2.0, 30.0, 50.0, 70.0, -11.0)
    given = dict(zip((*names, "seg_to_cam", "energy"), values, strict=True))
    terms = combine(**given, weights=LossWeights())
    expected = 1 + 2 + 0.1 * (0.5 * 30 + 0.5 * 50) + 0.05 * 70 + 0.05 * -11
    assert terms.total.item() == pytest.approx(expected)
    weights = LossWeights(cam_to_seg=1.0, seg_to_cam=2.0, energy=3.0, aux_share=0.25)
    expected = 3 + (0.75 * 30 + 0.25 * 50) + 2 * 70 + 3 * -11
    assert combine(**given, weights=weights).total.item() == pytest.approx(expected)


def test_classification_terms_differentiate_nothing_else():
    output = example_output(2)
    labels, _, _ = example_inputs(2)
    terms = classification_terms(output, labels)
    terms.total.backward()
    expected = classification_loss(output.logits, labels)
    expected = expected + classification_loss(output.aux_logits, labels)
    torch.testing.assert_close(terms.total, expected)
    assert [terms.cam_to_seg, terms.aux_cam_to_seg, terms.seg_to_cam, terms.energy] == [0] * 4
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
    torch.testing.assert_close(terms.total, combine(**expected, weights=LossWeights()).total)


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


def test_the_mean_over_parts_is_the_objective_of_the_whole():
    output, assignment = example_output(4), example_assignment(4)
    labels, strong, boxes = example_inputs(4)
    assignment.cam_pseudo_label[0] = 255
    whole = co_training_terms(output, labels, assignment, strong, boxes)
    (whole_gradient,) = torch.autograd.grad(whole.total, output.segmentation)
    counts = count_pixels(assignment.cam_pseudo_label) / 2
    aux_counts = count_pixels(assignment.aux_cam_pseudo_label) / 2
    parts = [
        co_training_terms(
            part_of(output, part),
            labels[part],
            part_of(assignment, part),
            strong[part],
            boxes[part],
            counts=counts,
            aux_counts=aux_counts,
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, value in whole.as_dict().items():
        mean = (parts[0].as_dict()[name] + parts[1].as_dict()[name]) / 2
        torch.testing.assert_close(mean, value, msg=lambda text, name=name: f"{name}: {text}")
    total = (parts[0].total + parts[1].total) / 2
    (gradient,) = torch.autograd.grad(total, output.segmentation)
    torch.testing.assert_close(gradient, whole_gradient)


@pytest.mark.parametrize("case", ["without labels", "empty box", "everything ignored"])
def test_awkward_crops_give_finite_losses_and_gradients(case):
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
    assignment = make_assignment(seen, labels, boxes, pair, pair, (GRID, GRID))
    expected_labels = {"without labels": {0, 255}}.get(case, {255})
    assert set(assignment.cam_pseudo_label.unique().tolist()) == expected_labels
    output = example_output(1)
    terms = co_training_terms(output, labels, assignment, strong, boxes)
    terms.total.backward()
    assert all(value.isfinite() for value in terms.as_dict().values())
    for name in ("logits", "aux_logits", "cam", "segmentation"):
        assert getattr(output, name).grad.isfinite().all(), name


def test_as_dict_is_detached_and_complete():
    values = [value.requires_grad_() for value in scalars(*map(float, range(7)))]
    logged = LossTerms(*values).as_dict()
    assert list(logged) == list(LossTerms.__dataclass_fields__)
    assert [float(value) for value in logged.values()] == list(map(float, range(7)))
    assert not any(value.requires_grad for value in logged.values())


def test_reduced_precision_ends_at_the_networks_output():
    output, assignment = example_output(1), example_assignment(1)
    labels, strong, boxes = example_inputs(1)
    reduced = NetworkOutput(*(value.detach().bfloat16() for value in output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = co_training_terms(reduced, labels, assignment, strong, boxes)
    assert {value.dtype for value in terms.as_dict().values()} == {torch.float32}
    same = NetworkOutput(*(value.float() for value in reduced))
    torch.testing.assert_close(
        terms.as_dict(), co_training_terms(same, labels, assignment, strong, boxes).as_dict()
    )
