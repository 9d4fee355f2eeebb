"""The method's settings: network, assignments, losses, optimisation, and the second stage.

Defaults are those of the released VOC run (of its published log), so that a recipe only names what differs.
Every field's docstring is its help text on the command line. Functions take these sections as they are.
The paper's multi-stage result was published without code: the second stage's are the field's usual choices.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0, le=4)]
Scales = Annotated[tuple[Scale, ...], Field(min_length=1)]

WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar")


def names_a_file(weights: str) -> bool:
    """Whether the option `model.weights` is a path (with a slash or a suffix) and no timm tag."""
    return "/" in weights or weights.endswith(WEIGHT_FILES)


class Section(BaseModel):
    """Base of all configuration models: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class ModelConfig(Section):
    """The network: backbone, its weights, and where the auxiliary map is taken."""

    backbone: str = "vit_base_patch16_224"
    """timm architecture, e.g. vit_base_patch16_224 or deit_tiny_patch16_224"""
    weights: str = "orig_in21k_ft_in1k"
    """`none` (random), a timm tag (downloaded), or a file: a backbone, the authors' network or ours"""
    weights_folder: str = ""
    """folder for the weights of timm tags, fetched once, before the workers start (empty: OUTPUT/weights);
    every node must see it"""
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    """extra arguments of timm's create_model as YAML, e.g. {patch_size: 8, depth: 4}"""
    aux_layer: Annotated[int, Field(le=-2)] = -3
    """block (Swin, CNN: stage) that feeds the auxiliary classifier, counted from the end (-1 is the last)"""
    decoder_channels: Annotated[int, Field(ge=8)] = 512
    """hidden channels of the LargeFOV decoder"""
    decoder_dilation: Annotated[int, Field(ge=1)] = 5
    """dilation of the LargeFOV decoder's 3x3 convolutions"""
    normalisation: Literal["encoder", "imagenet"] = "encoder"
    """mean and deviation of the colours: those of timm's weights (of a trained network's file: those that it
    was trained with; of another file: of the architecture's usual weights; of random weights: ImageNet's), or
    ImageNet's whatever the encoder, as in the released code"""
    freeze: Literal["none", "encoder"] = "none"
    """`encoder`: only classifiers and decoder learn; both networks share the encoder"""
    freeze_position_embedding: bool = True
    """keep the pretrained position embedding as it is; for random weights set false"""


class ThresholdConfig(Section):
    """Confidence thresholds that turn CAMs into pseudo-labels, fixed or learned from the activations."""

    kind: Literal["fixed_pair", "fixed_single", "two_components", "three_components"] = "fixed_pair"
    """`fixed_pair`: a high and a low threshold, ignore in between (released code); `fixed_single`: one
    threshold; `two_components`: one, learned while training (paper); `three_components`: a learned pair (in
    the released code, off there)"""
    low: Fraction = 0.25
    """main CAM, pairs: below it background; where a search of a pair starts"""
    high: Fraction = 0.7
    """main CAM, pairs: above it foreground; where a search of a pair starts"""
    aux_low: Fraction = 0.25
    """auxiliary CAM, pairs: below it background"""
    aux_high: Fraction = 0.7
    """auxiliary CAM, pairs: above it foreground"""
    single: Fraction = 0.45
    """main CAM, one threshold: foreground from it on; where its search starts"""
    aux_single: Fraction = 0.45
    """auxiliary CAM, one threshold"""
    margin: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    """one threshold, fixed or learned: pixels nearer to it than this are ignored (ours; paper: none are)"""
    variant: Literal["released", "early", "converged", "split_likelihood"] = "converged"
    """how `two_components` searches. Gaussian mixtures: `released` (EM anew from both ends, which stops after
    some iterations), `early` (the same from two means; nearest to the published thresholds), `converged` (EM
    goes on from step to step); or the most likely hard split"""
    queue: Annotated[int, Field(ge=1, le=10000)] = 100
    """global batches whose activations a search sees"""
    momentum: Fraction = 0.99
    """EMA decay of a searched threshold, per step"""
    regularisation: Annotated[float, Field(ge=1e-6, le=0.1)] = 1e-3
    """added to the variance of a mixture's components (scikit-learn's `reg_covar`, 1e-6 there): without it a
    component can sit on the CAMs' maxima, which are all 1, and the threshold climbs to them"""


class AssignmentConfig(Section):
    """What the assignment network does: EMA of the online network, multi-scale pass, pseudo-labels."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9994
    """EMA decay of the assignment network, per step (0: the online network itself)"""
    scales: Scales = (1.0, 0.5, 1.5)
    """scales of its pass over the weak view"""
    flip: bool = True
    """whether each scale of its pass also sees the mirror image"""
    aux_cam_last_scale_only: bool = False
    """the auxiliary CAM from the last scale alone, as the released code does by an oversight"""
    temperature: Positive = 0.01
    """temperature of the softmax that makes the segmentation pseudo-label"""
    downscale: Annotated[int, Field(ge=1, le=8)] = 2
    """CAM pseudo-labels are decided at the crop's size divided by this"""
    threshold: ThresholdConfig = ThresholdConfig()
    reliability: bool = False
    """weigh pixels of the CAM pseudo-labels by the inverse of their perplexity (paper's RAW)"""
    perplexity_scale: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """a of the perplexity (-log(a distance))^b, distance from the threshold in 0..1"""
    perplexity_power: Positive = 1.5
    """b of the perplexity; both fitted to the accuracy curves of the authors' figure"""


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


class SeparationConfig(Section):
    """Contrastive separation of the pixels that the auxiliary CAM is sure of."""

    temperature: Positive = 0.5
    """temperature of its softmax"""
    max_perplexity: Positive = 1.0
    """pixels with a higher perplexity in the auxiliary CAM stay out"""
    space: Literal["cam", "features"] = "cam"
    """what is compared: vectors of the main CAM, or of the main feature map"""
    max_pixels: Annotated[int, Field(ge=2, le=8192)] = 1024
    """most pixels of one image (memory grows with their square)"""


class LossConfig(Section):
    """Weights of the losses and the step from which all of them count."""

    cam_to_seg: NonNegative = 0.1
    """weight of the segmentation's cross-entropy with the CAM pseudo-labels (C2S; 0: none)"""
    seg_to_cam: NonNegative = 0.05
    """weight of the CAM's loss against the segmentation pseudo-label (S2C; 0: CAMs are not guided)"""
    energy: NonNegative = 0.05
    """weight of the dense energy (0: none)"""
    separation: NonNegative = 0.0
    """weight of contrastive separation in the CAMs (paper's CSC: 0.1; 0: none)"""
    aux_weight: Fraction = 0.5
    """fraction of C2S that uses the auxiliary CAM's pseudo-label"""
    warmup_steps: Annotated[int, Field(ge=0)] = 6000
    """steps in which only the classification losses count (0: none)"""
    zero_gradients_in_warmup: bool = True
    """give the decoder zero instead of missing gradients meanwhile, as the released code does"""
    energy_kernel: EnergyConfig = EnergyConfig()
    separation_contrast: SeparationConfig = SeparationConfig()


class OptimizerConfig(Section):
    """AdamW with a linear warm-up and a polynomial decay."""

    learning_rate: Positive = 6e-5
    """peak learning rate of the encoder"""
    head_factor: Positive = 10.0
    """classifiers and decoder learn this many times faster"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """each block of the encoder learns at so many times the rate of the next one (1: all at the same rate)"""
    weight_decay: NonNegative = 0.01
    """weight decay of every parameter"""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's betas"""
    warmup_steps: Annotated[int, Field(ge=0)] = 1500
    """steps of the linear learning-rate warm-up"""
    warmup_ratio: NonNegative = 1e-6
    """factor that the warm-up starts from"""
    power: NonNegative = 0.9
    """power of the polynomial decay"""
    clip_norm: NonNegative = 0.0
    """gradients of a larger norm are scaled down to it (0: never)"""


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
    balance: bool = False
    """background and foreground of a global batch count half each, as in the first stage's loss of the
    segmentation; else every pixel counts alike"""


class PseudoMaskConfig(Section):
    """How a trained CoSA labels its training images, whose tags it may use."""

    source: Literal["segmentation", "cam", "agreement", "object_agreement"] = "segmentation"
    """what is turned into masks; `agreement` keeps pixels where both say the same and ignores the others,
    `object_agreement` keeps the background of the segmentation, too"""
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

    @property
    def chosen_network(self) -> str:
        """The network asked for; empty for the better one."""
        return "" if self.network == "better" else self.network

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
    start: Literal["weights", "encoder"] = "weights"
    """what the second stage starts from: `model.weights`, or (then `none` will do there) the `encoder` of the
    network that made its masks, if both stages have the same backbone"""
