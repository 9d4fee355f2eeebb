"""The control experiment: how far the image classifier alone gets.

A run of classification losses only has a CAM but no trained segmentation. Its fairest prediction
without any mask at test time is the CAM restricted to the classes the classifier itself predicts,
with the background threshold that is best on the **training** images, then applied unchanged to the
validation images. What the whole method adds is the distance of its `unfiltered` mIoU to this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from cosa_dist.evaluation.evaluator import evaluate
from cosa_dist.evaluation.protocols import EvaluationSettings
from cosa_dist.evaluation.report import EvalReport

if TYPE_CHECKING:
    from cosa_dist.data.reading.loader import EvalSample

BACKGROUND_GRID = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class ControlResult:
    """What the classifier alone reaches, in per cent.

    Attributes:
        background: CAM threshold, the best of the grid on the training images.
        training_miou: CAM mIoU on the training images at that threshold.
        validation_miou: CAM mIoU on the validation images at that threshold; the control's number.
        training: report on the training images, with the whole grid.
        validation: report on the validation images, whose grid is the chosen threshold alone.
    """

    background: float
    training_miou: float
    validation_miou: float
    training: EvalReport
    validation: EvalReport


def choose_background(report: EvalReport) -> float:
    """The background threshold with the best CAM mIoU under `predicted_labels` (ours).

    Args:
        report: of the training images, made with a `cam_background_grid`. Choosing on the images
            that are judged afterwards would flatter the result.

    Returns:
        The threshold; the lowest of several equally good ones.

    Raises:
        ValueError: if the report has no grid.
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
    *,
    class_names: Sequence[str],
    settings: EvaluationSettings | None = None,
    **options: Any,
) -> ControlResult:
    """Choose the background threshold on training images and judge it on validation images.

    Args:
        network: a network trained with the classification losses only.
        training_samples: images with masks on which the threshold is chosen, this rank's part.
        validation_samples: images with masks that are judged, this rank's part.
        class_names: the C foreground classes.
        settings: as for `evaluate`; an empty `cam_background_grid` means `BACKGROUND_GRID`.
        **options: `device`, `precision` and `progress` of `evaluate`.

    Returns:
        The same result on every rank.

    Raises:
        ValueError: as `evaluate`, or if no class occurs in the masks.
    """
    settings = settings or EvaluationSettings()
    grid = settings.cam_background_grid or BACKGROUND_GRID

    def judge(samples: Iterable[EvalSample], thresholds: tuple[float, ...]) -> EvalReport:
        return evaluate(
            {"control": network},
            samples,
            class_names=class_names,
            settings=replace(settings, cam_background_grid=thresholds, crf=None),
            **options,
        )["control"]

    training = judge(training_samples, grid)
    background = choose_background(training)
    validation = judge(validation_samples, (background,))
    training_miou = training.cam_miou_by_background[background]
    validation_miou = validation.cam_miou_by_background[background]
    if training_miou is None or validation_miou is None:
        raise ValueError("no class occurs in the masks: they hold background and ignored pixels (255) only")
    return ControlResult(background, training_miou, validation_miou, training, validation)
