"""Average precision: by hand, against scikit-learn (with ties), against the golden numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cosa_dist.evaluation.average_precision import class_average_precision, image_average_precision


def test_by_hand():
    # Ranks of the positives: 1st and 3rd of three classes.
    scores, labels = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    assert image_average_precision(scores, labels).tolist() == pytest.approx([(1 + 2 / 3) / 2])
    per_class = class_average_precision(scores, labels)
    assert per_class[[0, 2]].tolist() == [1, 1]
    assert per_class[1].isnan()


def test_equal_scores_form_one_step():
    scores, labels = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert image_average_precision(scores, labels).tolist() == [0.25]


@pytest.mark.parametrize("values", [3, 1000])
def test_equals_scikit_learn(values):
    rng = np.random.default_rng(values)
    scores = rng.integers(0, values, (40, 6)).astype(np.float32)
    labels = (rng.random((40, 6)) < 0.3).astype(np.float32)
    labels[5] = 0
    ours = image_average_precision(torch.from_numpy(scores), torch.from_numpy(labels))
    labelled = labels.any(1)
    assert len(ours) == labelled.sum() < 40
    expected = [
        average_precision_score(y, s) for y, s in zip(labels[labelled], scores[labelled], strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)
    per_class = class_average_precision(torch.from_numpy(scores), torch.from_numpy(labels))
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(per_class.numpy(), expected, atol=1e-12)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"must both be \[N, C\]"):
        class_average_precision(torch.zeros(2, 3), torch.zeros(3, 2))


def test_golden_image_average_precision(golden):
    numbers = golden("compute_mAP")
    ours = image_average_precision(
        torch.from_numpy(numbers["in_pred"]), torch.from_numpy(numbers["in_label"])
    )
    np.testing.assert_allclose(ours.numpy(), numbers["out"], atol=1e-12)
