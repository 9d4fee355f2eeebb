"""What a labelling prints of its masks' quality."""

from __future__ import annotations

import torch

from cosa_dist.evaluation.pseudo_mask import MaskCounts
from jobs.pseudo_masks import quality_text


def test_quality_is_printed_by_class_or_in_one_line_without_truth():
    counts = MaskCounts.empty(3)
    counts.add(torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8), torch.tensor([[0, 1, 1, 1]]))
    lines = quality_text(counts.quality(["cat", "dog"])).splitlines()
    assert lines[3].split() == ["cat", "50.00", "33.33", "33.33", "75.00"]
    assert lines[4].split() == ["dog", "0.00", "-", "33.33", "0.00"]
    assert lines[-1] == "mIoU 66.67 with ignored pixels counted as missed"
    blind = MaskCounts.empty(3)
    blind.add(torch.tensor([[0, 255]], dtype=torch.uint8), None)
    assert quality_text(blind.quality(["cat", "dog"])) == "1 images, 50.00 % of the pixels ignored"
    empty = MaskCounts.empty(3)
    empty.add(torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0, 0]]))
    assert "no mIoU: no class of the true masks lies on" in quality_text(empty.quality(["cat", "dog"]))
