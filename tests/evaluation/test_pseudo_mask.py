"""Pseudo-masks of one image: tags, levels, probabilities, agreement, refinement; and their quality."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.pseudo_mask import MaskCounts, pseudo_mask

LABELS = torch.tensor([1.0, 0.0, 1.0])


def output_of(cam, segmentation):
    logits = torch.zeros(1, 3)
    return MultiScaleOutput(cam[None], cam[None], segmentation[None], logits, logits)


def labelled(cam, segmentation, image=None, passes=1, labels=LABELS, **settings):
    image = torch.zeros(3, *cam.shape[-2:], dtype=torch.uint8) if image is None else image
    made = pseudo_mask(output_of(cam, segmentation), 0, image, labels, PseudoMaskConfig(**settings), passes)
    return made.classes, made.reliability


@pytest.fixture
def maps():
    """Activations and probabilities of four pixels in a row."""
    cam = torch.tensor([[[0.9, 0.4, 0.1, 0.3]], [[1.0, 1.0, 1.0, 1.0]], [[0.2, 0.3, 0.0, 0.8]]])
    probabilities = torch.tensor(
        [[[0.1, 0.5, 0.7, 0.2]], [[0.6, 0.2, 0.1, 0.1]], [[0.2, 0.1, 0.1, 0.3]], [[0.1, 0.2, 0.1, 0.4]]]
    )
    return cam, probabilities.log()


def test_a_segmentation_gives_its_most_probable_tagged_class(maps):
    classes, reliability = labelled(*maps)
    assert classes.tolist() == [[1, 0, 0, 3]]
    # Class 2 is not tagged: the others share its probability.
    torch.testing.assert_close(reliability, torch.tensor([[0.6 / 0.8, 0.5 / 0.9, 0.7 / 0.9, 0.4 / 0.7]]))


def test_improbable_pixels_are_ignored(maps):
    classes, _ = labelled(*maps, min_probability=0.6)
    assert classes.tolist() == [[1, 255, 0, 255]]


def test_logits_are_averaged_over_the_passes(maps):
    cam, logits = maps
    assert torch.equal(labelled(cam, logits * 10, passes=10)[1], labelled(cam, logits)[1])


def test_a_cam_is_cut_by_two_levels(maps):
    classes, reliability = labelled(*maps, source="cam", cam_low=0.25, cam_high=0.5)
    assert classes.tolist() == [[1, 255, 0, 3]]
    torch.testing.assert_close(reliability, torch.tensor([[0.8, 0.0, 0.6, 0.6]]))


def test_one_level_leaves_nothing_out(maps):
    classes, _ = labelled(*maps, source="cam", cam_low=0.35, cam_high=0.35)
    assert classes.tolist() == [[1, 1, 0, 3]]


def test_agreement_keeps_what_both_say(maps):
    classes, reliability = labelled(*maps, source="agreement", cam_low=0.35, cam_high=0.35)
    assert classes.tolist() == [[1, 255, 0, 3]]
    assert reliability[0, 1] == 0
    assert (reliability[0, [0, 2, 3]] > 0).all()


def test_agreement_on_objects_keeps_the_background_of_the_segmentation(maps):
    classes, reliability = labelled(*maps, source="object_agreement", cam_low=0.35, cam_high=0.35)
    assert classes.tolist() == [[1, 0, 0, 3]]
    agreed = labelled(*maps, source="agreement", cam_low=0.35, cam_high=0.35)[1]
    assert reliability[0, [0, 2, 3]].tolist() == agreed[0, [0, 2, 3]].tolist()
    assert reliability[0, 1] == pytest.approx(0.5 / 0.9)
    cam, logits = maps
    classes, _ = labelled(cam.flip(0), logits, source="object_agreement", cam_low=0.35, cam_high=0.35)
    assert classes.tolist() == [[255, 0, 0, 255]]


@pytest.mark.parametrize("source", ["segmentation", "cam", "agreement", "object_agreement"])
def test_an_image_without_tags_is_background(maps, source):
    classes, reliability = labelled(*maps, labels=torch.zeros(3), source=source)
    assert classes.tolist() == [[0, 0, 0, 0]]
    assert torch.isfinite(reliability).all()


def test_maps_are_brought_to_the_image_s_size(maps):
    image = torch.zeros(3, 6, 8, dtype=torch.uint8)
    assert labelled(*maps, image=image)[0].shape == (6, 8)


@pytest.mark.parametrize("refinement", ["crf", "crf_ten_iterations", "pixel_adaptive"])
def test_a_refinement_moves_borders_to_those_of_the_image(refinement):
    """The image changes its colour at column 16; the segmentation believes in column 12, unsurely."""
    torch.manual_seed(0)
    image = torch.zeros(3, 24, 32, dtype=torch.uint8)
    image[:, :, 16:] = 200
    image = (image + torch.randint(0, 8, image.shape)).to(torch.uint8)
    foreground = torch.full((24, 32), 0.05)
    foreground[:, 12:] = 0.55
    foreground[:, 16:] = 0.9
    logits = torch.stack([1 - foreground, foreground]).log()
    plain = labelled(torch.zeros(1, 24, 32), logits, image, labels=torch.ones(1))[0]
    refined = labelled(torch.zeros(1, 24, 32), logits, image, labels=torch.ones(1), refinement=refinement)[0]
    truth = (torch.arange(32) >= 16).expand(24, 32)
    wrong = [int(((classes == 1) != truth).sum()) for classes in (plain, refined)]
    assert wrong[0] == 24 * 4
    assert wrong[1] < wrong[0] / 2


def test_levels_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="cam_low"):
        PseudoMaskConfig(cam_low=0.6, cam_high=0.5)


def test_quality_leaves_ignored_pixels_out_and_counts_them():
    counts = MaskCounts.empty(3)
    counts.add(torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8), torch.tensor([[0, 1, 1, 1]]))
    other = MaskCounts.empty(3)
    other.add(torch.tensor([[0, 0]], dtype=torch.uint8), None)
    total = MaskCounts.from_row((counts + other).as_row())
    quality = total.quality(["cat", "dog"])
    assert (quality["images"], quality["images_with_truth"]) == (2, 1)
    assert quality["ignored"] == pytest.approx(100 / 6)
    assert quality["iou"] == {"background": 100.0, "cat": 50.0, "dog": 0.0}
    # The dog is in no true mask: the mean is over the classes that are.
    assert quality["miou"] == pytest.approx(75.0)
    # Of the three true cat pixels one is ignored: background 1/1, cat 1/3.
    assert quality["miou_missed"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert quality["ignored_of_class"] == {"background": 0.0, "cat": pytest.approx(100 / 3), "dog": None}
    assert quality["share"] == pytest.approx({"background": 100 / 3, "cat": 100 / 3, "dog": 100 / 3})
    assert quality["true_share"] == pytest.approx({"background": 25.0, "cat": 75.0, "dog": 0.0})
    unknown = other.quality(["cat", "dog"])
    assert (unknown["miou"], unknown["miou_missed"], unknown["share"]) == (None, None, {})


def test_quality_agrees_with_plain_counting_on_random_masks():
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(0, 4, (40, 50), generator=generator)
    given[torch.rand(40, 50, generator=generator) < 0.3] = IGNORE
    truth = torch.randint(0, 4, (40, 50), generator=generator)
    truth[torch.rand(40, 50, generator=generator) < 0.1] = IGNORE
    counts = MaskCounts.empty(4)
    counts.add(given.to(torch.uint8), truth)
    quality = counts.quality(["a", "b", "c"])
    known = truth != IGNORE
    both = known & (given != IGNORE)
    overlaps = []
    for number, name in enumerate(("background", "a", "b", "c")):
        hit = ((given == number) & (truth == number)).sum()
        here = (truth == number).sum()
        missed = ((truth == number) & (given == IGNORE)).sum()
        overlaps.append(hit / (here + ((given == number) & known).sum() - hit))
        assert quality["ignored_of_class"][name] == pytest.approx(float(100 * missed / here))
        assert quality["true_share"][name] == pytest.approx(float(100 * here / known.sum()))
        assert quality["share"][name] == pytest.approx(
            float(100 * ((given == number) & both).sum() / both.sum())
        )
    assert quality["miou_missed"] == pytest.approx(float(100 * torch.stack(overlaps).mean()))


def test_counts_of_an_earlier_version_are_refused():
    row = MaskCounts.empty(3).as_row()
    row["confusion"] = row.pop("table")
    with pytest.raises(KeyError):
        MaskCounts.from_row(row)


def test_no_truth_counts_as_ignored_with_the_most_classes_a_mask_can_have():
    counts = MaskCounts.empty(IGNORE)
    given = torch.tensor([[0, 0, IGNORE, IGNORE, 1]], dtype=torch.uint8)
    counts.add(given, torch.tensor([[0, IGNORE, 0, IGNORE, 1]]))
    quality = counts.quality([f"class {number}" for number in range(1, IGNORE)])
    assert quality["miou_missed"] == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert quality["ignored_of_class"]["background"] == pytest.approx(50.0)


def test_truth_without_a_class_gives_no_quality():
    counts = MaskCounts.empty(3)
    counts.add(torch.tensor([[0, 0, 1]], dtype=torch.uint8), torch.tensor([[0, IGNORE, 0]]))
    quality = counts.quality(["cat", "dog"])
    assert (quality["miou"], quality["miou_missed"], quality["images_with_truth"]) == (None, None, 1)
