"""Pictures to classes: against a network whose answer is known, and the evaluator's own numbers."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.evaluation.protocols import resize_map
from cosa_dist.inference.segmentation import Segmenting, enlarged_bands
from tests.evaluation.colour_network import ColourNetwork

SETTINGS = EvaluationConfig(scales=(1.0,), flip=True).model_copy(update={"size": 8})
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def picture(*columns: tuple[int, int, int], height: int = 4) -> torch.Tensor:
    """Vertical stripes, each four pixels wide."""
    stripes = [
        torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, height, 4) for colour in columns
    ]
    return torch.cat(stripes, 2)


def segmenting(**options) -> Segmenting:
    return Segmenting(ColourNetwork().eval(), SETTINGS, torch.device("cpu"), **options)


def test_each_picture_keeps_its_size_and_gets_its_colours():
    red_black, green = picture(RED, BLACK), picture(GREEN, GREEN, height=8)
    first, second = segmenting()([red_black, green])
    assert first.classes.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4
    assert second.classes.shape == (8, 8)
    assert (second.classes == 2).all()
    assert set(first.confidence) == {0, 1}
    # Logits 0.1 for background and 1, 0, 0 for the colours: softmax of the winner.
    exponents = torch.tensor([0.1, 0.0, 1.0, 0.0]).exp()
    assert second.confidence[2] == pytest.approx(float(exponents[2] / exponents.sum()), abs=1e-5)


def test_labels_from_the_classifier_keep_its_classes_only():
    # Weak green: the classifier (2 max - 1) finds red only, the pixels say green.
    half = picture(RED, (0, 100, 0))
    assert segmenting()([half])[0].classes[0, -1] == 2
    assert segmenting(labels_from_classifier=True)([half])[0].classes[0, -1] == 0


def test_probabilities_sum_to_one_and_agree_with_the_classes():
    made = segmenting(probabilities=True)([picture(RED, BLACK)])[0]
    assert made.probabilities.shape == (4, 4, 8)
    assert made.probabilities.astype("float32").sum(0) == pytest.approx(1, abs=2e-3)
    assert (made.probabilities.argmax(0) == made.classes).all()
    filtered = segmenting(probabilities=True, labels_from_classifier=True)([picture(RED, BLACK)])[0]
    assert filtered.probabilities[2:].max() == 0


@pytest.mark.parametrize("size", [(23, 17), (5, 40), (7, 9)])
@pytest.mark.parametrize("most", [1, 100, 500])
def test_bands_are_the_whole_map_cut_up(size, most):
    maps = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
    bands = list(enlarged_bands(maps, size, most))
    assert [rows.start for rows, _ in bands[1:]] == [rows.stop for rows, _ in bands[:-1]]
    torch.testing.assert_close(
        torch.cat([band for _, band in bands], 1), resize_map(maps, size), rtol=0, atol=1e-5
    )


def test_a_small_band_changes_no_class_and_no_confidence():
    image = torch.randint(0, 256, (3, 37, 29), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = segmenting(probabilities=True)([image])[0]
    cut = segmenting(probabilities=True, band_values=300)([image])[0]
    assert (whole.classes == cut.classes).mean() > 0.999
    assert whole.confidence == pytest.approx(cut.confidence, abs=1e-3)
