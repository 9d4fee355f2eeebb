"""The method's settings: network, assignments, losses and optimisation.

Defaults are those of the released VOC run (METHOD settings of the published log), so that a recipe only
names what differs. Every field's docstring is its help text on the command line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Scales = tuple[Annotated[float, Field(gt=0, le=4)], ...]


class Section(BaseModel):
    """Base of all configuration models: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class ModelConfig(Section):
    """The network: backbone, its weights, and where the auxiliary map is taken."""

    backbone: str = "vit_base_patch16_224"
    """timm architecture, e.g. vit_base_patch16_224 or deit_tiny_patch16_224"""
    weights: str = "orig_in21k_ft_in1k"
    """`none` (random), a timm tag (downloaded), or the path of a local state dict"""
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    """extra arguments of timm's create_model as YAML, e.g. {patch_size: 8, depth: 4}"""
    aux_layer: Annotated[int, Field(le=-2)] = -3
    """block whose output feeds the auxiliary classifier, counted from the end (-1 is the last)"""
    decoder_channels: Annotated[int, Field(ge=8)] = 512
    """hidden channels of the LargeFOV decoder"""
    decoder_dilation: Annotated[int, Field(ge=1)] = 5
    """dilation of the LargeFOV decoder's 3x3 convolutions"""
    freeze_position_embedding: bool = True
    """keep the pretrained position embedding as it is; for random weights set false"""


class ThresholdConfig(Section):
    """Confidence thresholds that turn CAMs into pseudo-labels."""

    kind: Literal["fixed_pair"] = "fixed_pair"
    """`fixed_pair`: a high and a low threshold, ignore in between (released code)"""
    low: Share = 0.25
    """main CAM: below it background"""
    high: Share = 0.7
    """main CAM: above it foreground"""
    aux_low: Share = 0.25
    """auxiliary CAM: below it background"""
    aux_high: Share = 0.7
    """auxiliary CAM: above it foreground"""


class AssignmentConfig(Section):
    """What the assignment network does: moving average, multi-scale pass, pseudo-labels."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9994
    """share of itself that the assignment network keeps at each step"""
    scales: Scales = (1.0, 0.5, 1.5)
    """scales of its pass over the weak view; each with its mirror image"""
    aux_cam_last_scale_only: bool = False
    """the auxiliary CAM from the last scale alone, as the released code does by an oversight"""
    temperature: Positive = 0.01
    """temperature of the softmax that makes the segmentation pseudo-label"""
    downscale: Annotated[int, Field(ge=1, le=8)] = 2
    """CAM pseudo-labels are decided at the crop's size divided by this"""
    threshold: ThresholdConfig = ThresholdConfig()
    """thresholds on the CAM"""


class EnergyConfig(Section):
    """The dense colour-position energy of the segmentation."""

    sigma_rgb: Positive = 15.0
    """standard deviation of the colour kernel in grey levels"""
    sigma_xy: Positive = 100.0
    """standard deviation of the position kernel in pixels of the crop"""
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """the energy is computed at the crop's size times this"""
    weight: NonNegative = 1e-7
    """factor inside the energy (the loss weight comes on top)"""


class LossConfig(Section):
    """Weights of the losses and the step from which all of them count."""

    cam_to_seg: NonNegative = 0.1
    """weight of the segmentation's cross-entropy with the CAM pseudo-labels (C2S)"""
    seg_to_cam: NonNegative = 0.05
    """weight of the CAM's loss against the segmentation pseudo-label (S2C)"""
    energy: NonNegative = 0.05
    """weight of the dense energy"""
    aux_share: Share = 0.5
    """share of C2S that uses the auxiliary CAM's pseudo-label"""
    warmup_steps: Annotated[int, Field(ge=0)] = 6000
    """steps in which only the classification losses count (0: none)"""
    zero_gradients_in_warmup: bool = True
    """give the decoder zero instead of missing gradients meanwhile, as the released code does"""
    energy_kernel: EnergyConfig = EnergyConfig()
    """the energy's kernel"""


class OptimizerConfig(Section):
    """AdamW with a linear warm-up and a polynomial decay."""

    learning_rate: Positive = 6e-5
    """peak learning rate of the encoder"""
    head_factor: Positive = 10.0
    """classifiers and decoder learn this many times faster"""
    weight_decay: NonNegative = 0.01
    """weight decay of every parameter"""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's betas"""
    warmup_steps: Annotated[int, Field(ge=0)] = 1500
    """steps of the linear learning-rate warm-up"""
    warmup_ratio: NonNegative = 1e-6
    """factor that the warm-up starts from"""
    power: NonNegative = 0.9
    """power of the polynomial decay"""
