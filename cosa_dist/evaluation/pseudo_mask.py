"""One image's pseudo-mask: what a trained CoSA says of it, turned into classes to train a segmenter on.

The images are training images, so their tags may be used: only tagged classes (and background) are given
out. A source says where classes come from, a refinement moves their borders to those of the image, and what
remains uncertain is left out (255). The combination is ours; the parts are the field's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.config.stages import PseudoMaskConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.evaluator import resize_map
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.pixel_adaptive import pixel_adaptive


@dataclass(frozen=True)
class PseudoMask:
    """Classes `[H, W]` uint8 (0 background, 1..C, 255 ignored) and their reliability `[H, W]` in 0..1."""

    classes: Tensor
    reliability: Tensor


def pseudo_mask(
    output: MultiScaleOutput,
    index: int,
    image: Tensor,
    labels: Tensor,
    config: PseudoMaskConfig,
    passes: int,
) -> PseudoMask:
    """Label one image of a batch.

    Args:
        output: the multi-scale pass over the batch.
        index: which image of it.
        image: `[3, H, W]` uint8, at its own size.
        labels: `[C]` multi-hot tags.
        config: source, refinement and what is left out.
        passes: scales times mirror images that the segmentation logits are summed over.
    """
    refine = _Refinement(image, config.refinement)
    if config.source == "cam":
        return _from_cam(output.cam[index], labels, config, refine)
    logits = output.segmentation[index] / passes
    segmentation = _from_segmentation(logits, labels, config, refine)
    if config.source == "segmentation":
        return segmentation
    cam = _from_cam(output.cam[index], labels, config, refine)
    agreed = segmentation.classes == cam.classes
    return PseudoMask(
        segmentation.classes.masked_fill(~agreed, IGNORE),
        torch.minimum(segmentation.reliability, cam.reliability) * agreed,
    )


class _Refinement:
    """Refines probabilities `[K, H, W]` of one image; what it needs of the image is made once."""

    def __init__(self, image: Tensor, kind: str) -> None:
        self.image, self.kind = image, kind
        self.size = (image.shape[-2], image.shape[-1])
        self.crf: DenseCrf | None = None
        if kind.startswith("crf"):
            settings = CRF_SETTINGS["released" if kind == "crf" else "ten_iterations"]
            self.crf = DenseCrf.build(image[None], settings)

    def __call__(self, probabilities: Tensor) -> Tensor:
        if self.crf is not None:
            return self.crf.refine(probabilities[None])[0]
        if self.kind == "pixel_adaptive":
            refined = pixel_adaptive(self.image[None].float(), probabilities[None])[0]
            return refined / refined.sum(0, keepdim=True).clamp(min=1e-6)
        return probabilities


def _from_segmentation(
    logits: Tensor, labels: Tensor, config: PseudoMaskConfig, refine: _Refinement
) -> PseudoMask:
    """The most probable class of a segmentation `[C + 1, h, w]`; reliability is its probability."""
    planes = functional.pad(labels > 0.5, (1, 0), value=True).nonzero().flatten()
    probabilities = refine(resize_map(logits[planes], refine.size).softmax(0))
    most, place = probabilities.max(0)
    classes = planes[place].masked_fill(most < config.min_probability, IGNORE)
    return PseudoMask(classes.to(torch.uint8), most)


def _from_cam(cam: Tensor, labels: Tensor, config: PseudoMaskConfig, refine: _Refinement) -> PseudoMask:
    """Foreground where a CAM `[C, h, w]` beats the high level, background where all lose to the low one.

    Reliability grows with the distance of the strongest activation from the level on its side, 0 on it.
    """
    planes = (labels > 0.5).nonzero().flatten()
    activations = resize_map(cam[planes], refine.size).clamp(0, 1)
    if not len(planes):
        nothing = cam.new_zeros(refine.size)
        return PseudoMask(nothing.to(torch.uint8), nothing + 1)

    def against(level: float) -> Tensor:
        background = activations.new_full((1, *refine.size), level)
        scores = torch.cat([background, activations])
        return refine(scores / scores.sum(0, keepdim=True).clamp(min=1e-6)).argmax(0)

    above, below = against(config.cam_high), against(config.cam_low)
    classes = torch.where(above > 0, functional.pad(planes + 1, (1, 0))[above], IGNORE)
    classes = classes.masked_fill(below == 0, 0)
    strongest = activations.amax(0)
    over = (strongest - config.cam_high) / max(1 - config.cam_high, 1e-6)
    under = (config.cam_low - strongest) / max(config.cam_low, 1e-6)
    reliability = torch.where(classes > 0, over, under).clamp(0, 1) * (classes != IGNORE)
    return PseudoMask(classes.to(torch.uint8), reliability)
