"""The evaluator's settings of a run, from its configuration."""

from __future__ import annotations

from typing import Literal

from cosa_dist.config.schema import CrfConfig, RunConfig
from cosa_dist.evaluation.protocols import EvaluationSettings
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, CrfName, CrfSettings


def evaluation_settings(
    config: RunConfig, crf: CrfName | Literal["configured"] | None = None
) -> EvaluationSettings:
    """Return the settings that the run evaluates with.

    Args:
        config: of the run.
        crf: a dense CRF even if the run has none: that of this name, or with `configured` the
            numbers of `evaluation.crf`.
    """
    chosen = config.evaluation
    return EvaluationSettings(
        size=chosen.size,
        scales=chosen.scales,
        flip=chosen.flip,
        cam_background=chosen.cam_background,
        batch_size=chosen.batch_size,
        aux_cam_last_scale_only=config.assignment.aux_cam_last_scale_only,
        crf=_crf_settings(chosen.crf, crf),
    )


def _crf_settings(chosen: CrfConfig, name: CrfName | Literal["configured"] | None) -> CrfSettings | None:
    if name is None and not chosen.enabled:
        return None
    if name is None or name == "configured":
        return CrfSettings(**chosen.model_dump(exclude={"enabled"}))
    return CRF_SETTINGS[name]
