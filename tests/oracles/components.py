"""Each component of the method in two ways: the plain formulation, and ours.

A `Comparison` holds two calls that do the same work on the same input. Inputs are generated: smooth CAMs,
logits with noise, activations in two hills. Sizes are those of the run's batch, except where the method
speaks of whole images (dense CRF: 500 x 375) or has a published size (PAR: 224 x 224, five planes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from cosa_dist.assignment.activation import present_classes
from cosa_dist.assignment.inference import multi_scale
from cosa_dist.assignment.mixture import count_activations
from cosa_dist.assignment.pseudo_labels import cam_pseudo_label, segmentation_pseudo_label
from cosa_dist.assignment.threshold import LearnedThresholds, Threshold
from cosa_dist.benchmark.workload import Workload
from cosa_dist.config.method import ThresholdConfig
from cosa_dist.data.reading.loader import Batch
from cosa_dist.data.reading.views import normalise
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.pixel_adaptive import pixel_adaptive
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.losses.objective import cam_to_seg_loss, count_pixels, seg_to_cam_loss
from cosa_dist.model.network import update_ema
from tests.oracles.plain_assignment import (
    plain_cam_pseudo_label,
    plain_multi_scale,
    plain_segmentation_pseudo_label,
)
from tests.oracles.plain_losses import plain_cam_to_seg, plain_energy, plain_seg_to_cam
from tests.oracles.plain_network import explicit_attention
from tests.oracles.plain_optimizer import one_by_one, plain_move_towards
from tests.oracles.plain_refinement import plain_dense_crf, plain_pixel_adaptive
from tests.oracles.plain_thresholds import PlainQueue, plain_border


@dataclass(frozen=True)
class Comparison:
    """One component in two ways; both calls return what they made, for tests that compare it."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]


@dataclass(frozen=True)
class Inputs:
    """What the components work on."""

    work: Workload
    batch: Batch
    """on the device"""
    cam: Tensor
    """`[B, C, S, S]` in 0..1"""
    aux_cam: Tensor
    """`[B, C, S, S]` in 0..1"""
    logits: Tensor
    """`[B, C + 1, S, S]`"""
    grid_cam: Tensor
    """`[B, C, h, w]` raw CAM at the network's grid"""


def make_inputs(work: Workload, device: torch.device) -> Inputs:
    """Generate inputs of the run's sizes."""
    batch = next(work.steps)[0].to(device)
    size, stride = batch.weak.shape[-1], work.state.online.backbone.stride
    images, classes = batch.labels.shape
    generator = torch.Generator().manual_seed(0)

    def maps(planes: int, side: int) -> Tensor:
        coarse = torch.rand(images, planes, 14, 14, generator=generator)
        smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
        return smooth.to(device)

    grid = size // stride
    cam, aux_cam, raw = maps(classes, size), maps(classes, size), maps(classes, grid) - 0.3
    return Inputs(work, batch, cam, aux_cam, 10 * maps(classes + 1, size), raw)


def gradients(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, Tensor]:
    """A loss and its gradient with respect to `leaf`."""
    leaf = leaf.detach().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assignment_pass(given: Inputs) -> Comparison:
    """The assignment network's multi-scale pass."""
    work, settings = given.work, given.work.config.assignment
    network, images = work.state.assignment, normalise(given.batch.weak)
    last_only = settings.aux_cam_last_scale_only

    def plain() -> object:
        with explicit_attention(network), torch.inference_mode(), work.accelerator.autocast():
            return plain_multi_scale(network, images, settings.scales, last_only, settings.flip)

    def ours() -> object:
        with torch.inference_mode(), work.accelerator.autocast():
            return multi_scale(
                network,
                images,
                settings.scales,
                flip=settings.flip,
                aux_cam_last_scale_only=last_only,
                labels=given.batch.labels,
            )

    return Comparison("assignment pass", plain, ours)


def cam_labels(given: Inputs) -> Comparison:
    """The CAM pseudo-labels of both CAMs with the recipe's pairs."""
    settings, batch = given.work.config.assignment, given.batch
    pairs = (
        (given.cam, settings.threshold.low, settings.threshold.high),
        (given.aux_cam, settings.threshold.aux_low, settings.threshold.aux_high),
    )

    def by(label: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: [
            label(cam, batch.labels, batch.boxes, low, high, settings.downscale) for cam, low, high in pairs
        ]

    return Comparison("CPL of both CAMs", by(plain_cam_pseudo_label), by(_pair_label))


def _pair_label(
    cam: Tensor, labels: Tensor, boxes: Tensor, low: float, high: float, downscale: int = 2
) -> Tensor:
    return cam_pseudo_label(cam, present_classes(labels), boxes, Threshold(low, high), downscale)


def segmentation_to_cam(given: Inputs) -> Comparison:
    """The segmentation pseudo-label and the loss that reads it, forward and backward."""
    labels, temperature = given.batch.labels, given.work.config.assignment.temperature
    grid = (given.grid_cam.shape[-2], given.grid_cam.shape[-1])

    def plain(cam: Tensor) -> Tensor:
        return plain_seg_to_cam(cam, plain_segmentation_pseudo_label(given.logits, labels, grid, temperature))

    def ours(cam: Tensor) -> Tensor:
        return seg_to_cam_loss(cam, segmentation_pseudo_label(given.logits, labels, grid, temperature))

    cam = given.grid_cam
    return Comparison("SPL + S2C", lambda: gradients(plain, cam), lambda: gradients(ours, cam))


def _labels(given: Inputs) -> list[Tensor]:
    return [
        _pair_label(cam, given.batch.labels, given.batch.boxes, 0.4, 0.6)
        for cam in (given.cam, given.aux_cam)
    ]


def cam_to_segmentation(given: Inputs) -> Comparison:
    """C2S with both pseudo-labels from logits at the crop's size, forward and backward."""
    main, aux = _labels(given)

    def ours(logits: Tensor) -> Tensor:
        log_probabilities = logits.log_softmax(1)
        parts = [cam_to_seg_loss(log_probabilities, label, count_pixels(label)) for label in (main, aux)]
        return parts[0] + parts[1]

    def plain(logits: Tensor) -> Tensor:
        return plain_cam_to_seg(logits, main) + plain_cam_to_seg(logits, aux)

    logits = given.logits
    return Comparison("C2S of both CAMs", lambda: gradients(plain, logits), lambda: gradients(ours, logits))


def energy(given: Inputs) -> Comparison:
    """The dense energy with the recipe's kernel, forward and backward."""
    batch, label = given.batch, _labels(given)[0]
    kernel = given.work.config.losses.energy_kernel

    def by(loss: Callable[..., Tensor]) -> Callable[[], object]:
        def value(logits: Tensor) -> Tensor:
            return loss(batch.strong, logits, label, batch.boxes, kernel)

        return lambda: gradients(value, given.logits)

    return Comparison(f"energy, {given.logits.shape[1]} classes", by(plain_energy), by(dense_energy_loss))


def hill_values(queue: int, images: int) -> NDArray[np.float64]:
    """Activations `[queue, images * 784]` of some batches, in two hills at 0.25 and 0.7."""
    random = np.random.default_rng(0)
    low = random.normal(0.25, 0.08, (queue, images * 500))
    high = random.normal(0.7, 0.1, (queue, images * 284))
    return np.concatenate([low, high], axis=1).clip(0, 0.999)


def threshold_search(given: Inputs, queue: int = 100) -> Comparison:
    """Two-component search for both CAMs over a full queue of global batches."""
    device = given.batch.labels.device
    values = hill_values(queue, len(given.batch.labels))
    raw = PlainQueue(queue)
    learned = LearnedThresholds(ThresholdConfig(kind="two_components", queue=queue), device)
    tensors = [torch.from_numpy(batch).to(device) for batch in values]
    histograms = [count_activations(batch, batch < 1) for batch in tensors]
    for batch, histogram in zip(values, histograms, strict=True):
        raw.add(batch)
        learned.update(torch.stack([histogram, histogram]))

    def plain() -> object:
        raw.add(values[0])
        return [plain_border(raw.values()) for _ in range(2)]

    def ours() -> object:
        histogram = count_activations(tensors[0], tensors[0] < 1)
        learned.update(torch.stack([histogram, histogram]))
        return [float(threshold.high) for threshold in learned.current()]

    return Comparison("threshold search, both CAMs", plain, ours)


def refinement(given: Inputs, side: int = 224) -> Comparison:
    """PAR of five planes on two images."""
    device = given.batch.weak.device
    images = functional.interpolate(given.batch.weak[:2].float(), size=(side, side))
    maps = torch.rand(len(images), 5, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    return Comparison(
        "PAR, 10 iterations",
        lambda: plain_pixel_adaptive(images, maps),
        lambda: pixel_adaptive(images, maps),
    )


def crf(given: Inputs, size: tuple[int, int] = (375, 500)) -> Comparison:
    """The released evaluation's dense CRF on one image, all classes."""
    images = functional.interpolate(given.batch.weak[:1].float(), size=size, mode="bilinear")
    logits = functional.interpolate(given.logits[:1], size=size, mode="bilinear")
    probabilities, settings = logits.softmax(1), CRF_SETTINGS["released"]
    return Comparison(
        "dense CRF, 1 iteration",
        lambda: plain_dense_crf(images, probabilities, settings),
        lambda: DenseCrf.build(images, settings).refine(probabilities),
    )


def optimiser(given: Inputs) -> Comparison:
    """One step of AdamW over all parameters."""
    chosen = given.work.state.optimizer
    for group in chosen.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 1e-6)

    def plain() -> object:
        with one_by_one(chosen):
            return chosen.step()

    return Comparison("optimiser", plain, chosen.step)


def moving_average(given: Inputs) -> Comparison:
    """The assignment network's move towards the online network."""
    own, other = given.work.state.assignment, given.work.state.online
    momentum = given.work.config.assignment.momentum
    return Comparison(
        "EMA",
        lambda: plain_move_towards(own.parameters(), other.parameters(), momentum),
        lambda: update_ema(own, other, momentum),
    )


COMPONENTS: dict[str, Callable[[Inputs], Comparison]] = {
    "assignment_pass": assignment_pass,
    "cam_labels": cam_labels,
    "segmentation_to_cam": segmentation_to_cam,
    "cam_to_segmentation": cam_to_segmentation,
    "energy": energy,
    "threshold_search": threshold_search,
    "refinement": refinement,
    "crf": crf,
    "optimiser": optimiser,
    "moving_average": moving_average,
}
