"""The control experiment: how far the image classifier alone gets.

A run of classification losses only has a CAM but no trained segmentation. Its fairest prediction without any
mask at test time is the CAM restricted to the classes the classifier itself predicts, with the background
threshold that is best on the **training** images, then applied unchanged to the validation images. What the
whole method adds is the distance of its `unfiltered` mIoU to this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.evaluator import Evaluator, with_crf
from cosa_dist.evaluation.report import EvalReport

BACKGROUND_GRID = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class ControlResult:
    """What the classifier alone reaches: the grid's best CAM threshold, and the mIoU at it in per cent."""

    background: float
    training_miou: float
    validation_miou: float
    """the control's number"""


def choose_background(report: EvalReport) -> float:
    """The (lowest) background threshold with the best CAM mIoU under `predicted_labels` (ours).

    Raises:
        ValueError: the report has no grid.
    """
    scored = {t: miou for t, miou in report.cam_miou_by_background.items() if miou is not None}
    if not scored:
        raise ValueError(
            f"the report of {report.network!r} has no CAM scores by background threshold: "
            "evaluate with cam_background_grid set, on masks in which a class occurs"
        )
    return max(sorted(scored), key=scored.__getitem__)


def classification_control(
    network: nn.Module,
    training_samples: Iterable[EvalSample],
    validation_samples: Iterable[EvalSample],
    evaluator: Evaluator,
) -> ControlResult:
    """Choose the background threshold on training images and judge it on validation images.

    Both are this rank's part, with masks. The same result on every rank.

    Raises:
        ValueError: as `Evaluator.evaluate`, or no class occurs in the masks.
    """
    plain = replace(evaluator, config=with_crf(evaluator.config, None), masks_needed=True)

    def judge(samples: Iterable[EvalSample], grid: tuple[float, ...]) -> EvalReport:
        return replace(plain, cam_background_grid=grid).evaluate({"control": network}, samples)["control"]

    training = judge(training_samples, BACKGROUND_GRID)
    background = choose_background(training)
    training_miou = training.cam_miou_by_background[background]
    validation_miou = judge(validation_samples, (background,)).cam_miou_by_background[background]
    if training_miou is None or validation_miou is None:
        raise ValueError("no class occurs in the masks: they hold background and ignored pixels (255) only")
    return ControlResult(background, training_miou, validation_miou)
