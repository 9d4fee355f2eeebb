"""Settings of the multi-stage way: pseudo-masks from a trained CoSA, and the segmenter trained on them.

The paper's multi-stage result was published without code; these are the field's usual choices for it, each
of them an option.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cosa_dist.config.method import Fraction, Scale, Section


class SegmenterConfig(Section):
    """The second stage's network: UPerNet on the backbone of `model`, trained on masks."""

    decoder_channels: Annotated[int, Field(ge=8)] = 512
    """channels of the UPerNet decoder"""
    decoder_norm: Literal["batch", "group"] = "batch"
    """`batch`: batch norm, over all GPUs; `group`: group norm, whatever the batch and the workers"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9994
    """EMA decay of the averaged network, per step (0: a copy of the trained one)"""
    weigh: bool = False
    """weigh pixels by the reliability that is stored with the pseudo-masks"""


class PseudoMaskConfig(Section):
    """How a trained CoSA labels its training images, whose tags it may use."""

    source: Literal["segmentation", "cam", "agreement"] = "segmentation"
    """what is turned into masks; `agreement` keeps pixels where both say the same and ignores the others"""
    network: Literal["better", "online", "assignment"] = "better"
    """whose output (`better`: of the higher unfiltered validation mIoU, `online` if there is none)"""
    scales: tuple[Scale, ...] = ()
    """scales of its pass (empty: those of the run's evaluation)"""
    refinement: Literal["none", "crf", "crf_ten_iterations", "pixel_adaptive"] = "none"
    """refine the class probabilities by the image: dense CRF of one or ten iterations, or PAR"""
    min_probability: Fraction = 0.0
    """segmentation: pixels of a lower probability are ignored"""
    cam_low: Fraction = 0.25
    """CAM: pixels that are background even against this level are background"""
    cam_high: Fraction = 0.5
    """CAM: pixels that are foreground even against this level are foreground; ignored between both"""
    reliability: bool = False
    """store the reliability of each pixel beside its class, for `segmenter.weigh`"""

    @model_validator(mode="after")
    def _levels_in_order(self) -> PseudoMaskConfig:
        if self.cam_low > self.cam_high:
            raise ValueError(f"pseudo_masks.cam_low {self.cam_low} is above cam_high {self.cam_high}")
        return self


class StageOneConfig(Section):
    """The first stage of a multi-stage run."""

    recipe: str = ""
    """recipe of the CoSA run that makes the pseudo-masks"""
    options: dict[str, Any] = Field(default_factory=dict)
    """dotted options on top of that recipe as YAML, e.g. {training.steps: 1000}"""
    run: str = ""
    """folder of a finished CoSA run to take instead of training one"""
