"""The configuration of one run: data, method, training, evaluation, tracking and workers.

`RunConfig` is frozen and validated; cross-field contradictions (a warm-up longer than the run, a low
threshold above the high one) are refused here, before anything starts. Its JSON form is stored with the
run, inside every checkpoint and in the tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cosa_dist.config.method import (
    AssignmentConfig,
    Fraction,
    LossConfig,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Positive,
    PseudoMaskConfig,
    Scales,
    Section,
    SegmenterConfig,
    StageOneConfig,
)

Count = Annotated[int, Field(ge=1)]
FIVE_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5]
ONE_VIEW = "one view"
"""evaluation of images seen once, neither scaled nor mirrored"""


class DataConfig(Section):
    """Which shards are read, and how the views are cut from the images."""

    shards: str = "data/voc"
    """folder of Arrow shards written by jobs/ingest.py, or its URL (http://, s3://, ...)"""
    reading: Literal["mapped", "streaming"] = "mapped"
    """`mapped`: any record at once, from local shards or the cache; `streaming`: shard after shard"""
    cache: str = ""
    """folder on each node for copies of remote shards (empty: none are kept)"""
    shuffle_window: Count = 256
    """streaming: rows that each loader process holds in memory and shuffles"""
    train_split: str = "train"
    """split to train on"""
    val_split: str = "val"
    """split to evaluate on"""
    label: str = ""
    """name of the data set in tables (default: the name stored with the shards)"""
    crop_size: Annotated[int, Field(ge=16)] = 448
    """side of the square training crop in pixels"""
    scale_range: tuple[Positive, Positive] = (0.5, 2.0)
    """random scaling before the crop"""
    loader_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """loader processes of each worker (0: in the training process); `auto`: beside a GPU two fewer than the
    worker's CPUs, from 2 to 16; without one 2"""


class TrainingConfig(Section):
    """Length, batch, precision and bookkeeping of the training loop."""

    steps: Count = 32000
    """optimiser steps"""
    global_batch_size: Count = 4
    """images of one optimiser step over all workers"""
    micro_batch_size: Annotated[int, Field(ge=0)] = 0
    """images that one worker computes at a time, at most (0: its whole per-worker batch); fewer accumulate"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on GPUs that have it, fp32 elsewhere"""
    matmul_precision: Literal["highest", "high"] = "highest"
    """fp32 matrix products and convolutions: `high` lets GPUs that have TF32 use it, several times as fast"""
    deterministic: bool = False
    """results on a GPU repeat bit for bit, more slowly (on a CPU they do anyway)"""
    compile: bool = False
    """torch.compile both networks"""
    activation_checkpointing: bool = False
    """transformers: compute each block again in the backward pass instead of keeping its activations"""
    log_every: Count = 20
    """steps between two lines of log and two points of the curves"""
    checkpoint_every: Count = 500
    """steps between two checkpoints (one is written at the end in any case)"""
    checkpoint_minutes: NonNegative = 0.0
    """a checkpoint is also written at the first line of log so many minutes after the last one (0: by steps
    only)"""
    keep_checkpoints: Count = 2
    """newest checkpoints that are kept, beside the best"""


class CrfConfig(Section):
    """The dense CRF of the evaluation; defaults of the released one."""

    enabled: bool = False
    """also measure `unfiltered_crf` and `true_labels_crf`"""
    iterations: Count = 1
    """mean-field iterations"""
    position_sigma: Positive = 1.0
    """standard deviation of the position kernel in pixels"""
    position_weight: NonNegative = 1.0
    """weight of the position kernel"""
    bilateral_sigma_xy: Positive = 121.0
    """standard deviation of the position-and-colour kernel in pixels"""
    bilateral_sigma_rgb: Positive = 5.0
    """its standard deviation in grey levels"""
    bilateral_weight: NonNegative = 4.0
    """its weight"""

    @property
    def words(self) -> str:
        """`released CRF`, or its numbers: position, then position-and-colour kernel."""
        if self.model_copy(update={"enabled": False}) == CrfConfig():
            return "released CRF"
        position = f"{self.position_sigma:g}/{self.position_weight:g}"
        colour = f"{self.bilateral_sigma_xy:g}/{self.bilateral_sigma_rgb:g}/{self.bilateral_weight:g}"
        return f"CRF {self.iterations} iterations {position} {colour}"


ProtocolName = Literal["cosa", "one_view", "toco", "seco", "more", "excel", "weclip"]
_OF_SECO: dict[str, Any] = {
    "views_from": "original",
    "scales": (1.0, 1.25, 1.5),
    "merging": "maximum",
    "merge_at": "image",
    "crf": {"iterations": 10},
}
_CRF_OF_MORE = {
    "iterations": 10,
    "position_weight": 3.0,
    "bilateral_sigma_xy": 67.0,
    "bilateral_sigma_rgb": 3.0,
}
_CRF_OF_WECLIP = {"iterations": 10, "position_sigma": 3.0, "position_weight": 3.0, "bilateral_sigma_xy": 64.0}
NAMED_PROTOCOLS: dict[ProtocolName, dict[str, Any]] = {
    "cosa": {},
    "one_view": {"scales": (1.0,), "flip": False, "merge_at": "grid"},
    "toco": {
        "geometry": "own",
        "scales": (1.0, 1.5, 1.25),
        "merging": "maximum",
        "crf": {"iterations": 10},
    },
    "seco": _OF_SECO,
    "more": {**_OF_SECO, "crf": _CRF_OF_MORE},
    "excel": {
        "size": 320,
        "views_from": "original",
        "scales": (1.0, 0.7, 1.2, 1.5),
        "flip": "scaled",
        "merging": "mean",
        "merge_at": "image",
        "crf": _CRF_OF_MORE,
    },
    "weclip": {
        "geometry": "longer_side",
        "size": 512,
        "scales": (1.0, 0.75),
        "merging": "mean",
        "merge_at": "grid",
        "crf": _CRF_OF_WECLIP,
    },
}
"""What the VOC evaluations of these repositories set otherwise than the released CoSA, as their scripts say;
`one_view` is what ToCo, DuPL, SeCo, MoRe and ExCEL measure while training"""


def _different(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not as in `own`; a list is the same as a tuple."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        plain = tuple(value) if isinstance(value, list) else value
        if isinstance(value, Mapping) and isinstance(own.get(key), Mapping):
            if rest := _different(value, own[key]):
                kept[key] = rest
        elif key not in own or plain != own[key]:
            kept[key] = value
    return kept


class EvaluationConfig(Section):
    """The evaluation on the validation split."""

    every: Annotated[int, Field(ge=0)] = 2000
    """steps between two evaluations (0: only at the end)"""
    protocol: ProtocolName = "cosa"
    """published evaluation that gives every detail below which is not set, and the CRF's numbers"""
    geometry: Literal["square", "own", "longer_side"] = "square"
    """what images are resized to: a square of `size`, nothing, or a longer side of `size` (aspect kept)"""
    size: Annotated[int, Field(ge=16)] = 448
    """side in pixels that images are resized to"""
    views_from: Literal["resized", "original"] = "resized"
    """what scaled views are made from"""
    scales: Scales = (1.0, 0.5, 1.5, 0.75, 1.25)
    """scales of the multi-scale pass"""
    flip: bool | Literal["scaled"] = True
    """add the mirror image of each scale (`scaled`: of each but 1)"""
    merging: Literal["sum", "mean", "maximum"] = "sum"
    """how scales are joined: sum of all logits, mean over scales of the mirror pair's mean, or maximum over
    scales of the pair's sum"""
    merge_at: Literal["resized", "image", "grid"] = "resized"
    """where they are joined: enlarged to the resized image, to the image's own size, or to the first scale's
    grid of features"""
    cam_background: Fraction = 0.5
    """background level of the CAM measures"""
    batch_size: Count = 4
    """images of one network pass"""
    limit: Annotated[int, Field(ge=0)] = 0
    """evaluate on the first images only during training (0: all); the last evaluation uses all"""
    pictures: Annotated[int, Field(ge=0)] = 8
    """sample pictures that are saved at the last evaluation"""
    cam_control: bool = False
    """measure the CAM with predicted labels too, its background chosen on training images"""
    crf: CrfConfig = CrfConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        name = values.get("protocol") if isinstance(values, dict) else None
        named = next((details for known, details in NAMED_PROTOCOLS.items() if known == name), None)
        if not named:
            return values
        crf = values.get("crf", {})
        filled = {"crf": {**named.get("crf", {}), **crf}} if isinstance(crf, dict) else {}
        return {**named, **values, **filled}

    @property
    def in_batches(self) -> bool:
        """Whether images become squares of one size that go through the network, and are merged, together."""
        return (self.geometry, self.views_from) == ("square", "resized") and self.merge_at != "image"

    @property
    def words(self) -> str:
        """What moves a score, but for the CRF: `448 square, 5 scales + mirror`; equal for equal protocols.

        The order of scales counts on a grid only, which is the first scale's (unsaid: of scale 1). What is
        usual is left out: merging on the grid for one view, at the resized image otherwise.
        """
        scales, own = sorted(self.scales), self.geometry == "own"
        square = self.geometry == "square"
        shape = "own size" if own else f"{self.size} square" if square else f"longer side {self.size}"
        one_view = scales == [1.0] and self.flip is not True
        whole = "image" if own or self.merge_at == "image" else "resized image"
        of_scale = f" of scale {self.scales[0]:g}" if self.scales[0] != 1 else ""
        place = f"grid{of_scale}" if self.merge_at == "grid" else whole
        usual = "grid" if one_view else "image" if own else "resized image"
        merged = [] if place == usual else [f"merged at the {place}"]
        if one_view:
            return ", ".join([shape, ONE_VIEW, *merged])
        listed = "1 scale" if scales == [1.0] else "scales " + " ".join(f"{scale:g}" for scale in scales)
        mirror = {True: " + mirror", False: ", no mirror", "scaled": " + mirror but at 1"}[self.flip]
        parts = [
            f"{shape} from the original" if self.views_from == "original" and not own else shape,
            ("5 scales" if scales == FIVE_SCALES else listed) + mirror,
            *([self.merging] if self.merging != "sum" else []),
            *merged,
        ]
        return ", ".join(parts)

    @classmethod
    def without_own(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options of an evaluation without those that its named protocol gives anyway, for another to give.

        A resolved configuration has all of them, so that what was set by hand is what differs.
        """
        name = values.get("protocol", cls().protocol)
        own = next((cls(protocol=known).model_dump() for known in NAMED_PROTOCOLS if known == name), None)
        return dict(values) if own is None else _different(values, own)


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = ""
    """MLflow store (empty: SQLite in the output folder), e.g. http://127.0.0.1:5000"""
    experiment: str = "cosa"
    """MLflow experiment"""
    enabled: bool = True
    """false: only the run folder's metrics.jsonl"""


class DistributedConfig(Section):
    """Workers of Ray Train."""

    workers: Annotated[int, Field(ge=0)] = 0
    """number of workers (0: one for each of the most GPUs that share the batch evenly, or one on a CPU
    machine); [fewest, most] sets fewest_workers as well"""
    fewest_workers: Annotated[int, Field(ge=0)] = 0
    """the run also goes with fewer workers, down to these, where nodes are missing, and takes more when they
    are back; only numbers that divide training.global_batch_size (0: always `workers`)"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto`: GPUs if the cluster has any"""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """CPUs reserved by each worker (0: an equal part of the cluster's)"""
    placement_deadline: Positive = 300.0
    """seconds to wait for a place for the workers, at the start and after a loss, before giving up"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """restarts after a lost worker, over the whole run"""
    bf16_gradients: bool = False
    """exchange gradients in bf16: half the bytes, each rounded to eight bits"""
    timeout: Positive = 600.0
    """seconds after which a collective operation without answer fails (with data.cache, more than one node's
    fetching may take longer than another's)"""

    @model_validator(mode="before")
    @classmethod
    def _read_bounds(cls, values: Any) -> Any:
        workers = values.get("workers") if isinstance(values, dict) else None
        if isinstance(workers, list | tuple) and len(workers) == 2:
            return {**values, "fewest_workers": workers[0], "workers": workers[1]}
        return values

    @model_validator(mode="after")
    def _bounds_in_order(self) -> DistributedConfig:
        if self.fewest_workers > self.workers:
            raise ValueError(
                f"distributed.fewest_workers {self.fewest_workers} is above workers {self.workers}"
            )
        return self


class RunConfig(Section):
    """One training run."""

    recipe: str = "custom"
    """name of the recipe it came from"""
    name: str = ""
    """run name (empty: recipe, seed and time)"""
    kind: Literal["cosa", "control", "segmenter"] = "cosa"
    """`control` marks a classification-only comparison run; `segmenter` trains on masks (second stage)"""
    supervision: Literal["pseudo_masks", "truth"] = "pseudo_masks"
    """what a segmenter learns from: masks made by a first stage, or the true ones (an upper bound)"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """seed of weights, order and augmentation"""
    output: str = "outputs"
    """folder of run folders and of the default MLflow store; every node must see it"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    assignment: AssignmentConfig = AssignmentConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    distributed: DistributedConfig = DistributedConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    pseudo_masks: PseudoMaskConfig = PseudoMaskConfig()
    stage_one: StageOneConfig = StageOneConfig()

    @model_validator(mode="after")
    def _no_contradiction(self) -> RunConfig:
        threshold, data, steps = self.assignment.threshold, self.data, self.training.steps
        warmup, loss_warmup = self.optimizer.warmup_steps, self.losses.warmup_steps
        url = "://" in data.shards and not data.shards.startswith("file://")
        contradictions = {
            f"assignment.threshold.low {threshold.low} is above high {threshold.high}": (
                threshold.low > threshold.high
            ),
            f"assignment.threshold.aux_low {threshold.aux_low} is above aux_high {threshold.aux_high}": (
                threshold.aux_low > threshold.aux_high
            ),
            f"assignment.threshold.variant {threshold.variant} needs kind two_components, "
            f"not {threshold.kind}": (
                threshold.variant != "converged" and threshold.kind != "two_components"
            ),
            f"assignment.threshold.margin {threshold.margin} needs one threshold (kind fixed_single or "
            f"two_components), not {threshold.kind}": (
                threshold.margin > 0 and threshold.kind in ("fixed_pair", "three_components")
            ),
            **{
                f"assignment.threshold.margin {threshold.margin} around {name} {level} leaves no "
                f"{'background' if level < 0.5 else 'foreground'}: set a smaller one": (
                    threshold.kind == "fixed_single" and 0 < threshold.margin >= min(level, 1 - level)
                )
                for name, level in (("single", threshold.single), ("aux_single", threshold.aux_single))
            },
            f"data.reading mapped cannot read {data.shards} where it is: set data.reading to streaming, "
            "or data.cache to a folder for local copies": (
                url and data.reading == "mapped" and not data.cache
            ),
            f"data.scale_range {data.scale_range} is not (low, high)": (
                data.scale_range[0] > data.scale_range[1]
            ),
            f"optimizer.warmup_steps {warmup} is longer than the run (training.steps {steps})": (
                warmup > steps
            ),
            f"losses.warmup_steps {loss_warmup} leaves no co-training step of training.steps {steps}; "
            "for a classification-only run set kind: control": (self.kind == "cosa" and loss_warmup >= steps),
        }
        for message, found in contradictions.items():
            if found:
                raise ValueError(message)
        return self
