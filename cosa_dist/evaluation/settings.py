"""The evaluator's settings of a run, from its configuration."""

from __future__ import annotations

from cosa_dist.config.schema import RunConfig
from cosa_dist.evaluation.protocols import EvaluationSettings


def evaluation_settings(config: RunConfig) -> EvaluationSettings:
    """Return the settings that the run evaluates with."""
    chosen = config.evaluation
    return EvaluationSettings(
        size=chosen.size,
        scales=chosen.scales,
        flip=chosen.flip,
        cam_background=chosen.cam_background,
        batch_size=chosen.batch_size,
        aux_cam_last_scale_only=config.assignment.aux_cam_last_scale_only,
    )
