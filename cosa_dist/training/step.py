"""One optimiser step of the co-training, from a global batch to updated networks.

Read aloud: take this rank's micro-batches; the assignment network looks at the weak views; its CAMs and
segmentations become an Assignment, unless the loss warm-up still runs; the online network looks at the
strong views; LossTerms; backward, step; the assignment network moves towards the online one. Pixels are
counted over all ranks and micro-batches first, so the loss of a global batch does not depend on how it is
cut up. Searched thresholds learn from all of the global batch and are used from the next step on, so that no
micro-batch has to be kept until the last one is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cosa_dist.assignment.inference import multi_scale
from cosa_dist.assignment.pseudo_labels import Assignment, AssignmentSettings, make_assignment
from cosa_dist.assignment.reliability import PerplexitySettings
from cosa_dist.assignment.reliable_pixels import SelectionSettings
from cosa_dist.assignment.threshold import ThresholdSource
from cosa_dist.collective import rank, sum_over_ranks, world_size
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.loader import Batch
from cosa_dist.data.reading.views import normalise
from cosa_dist.losses.normalisers import Normalisers, countings, normalisers
from cosa_dist.losses.objective import (
    EnergySettings,
    LossTerms,
    LossWeights,
    SeparationSettings,
    classification_terms,
    co_training_terms,
)
from cosa_dist.model.network import CosaNetwork, update_ema
from cosa_dist.stopwatch import part
from cosa_dist.training.optimizer import (
    fill_missing_gradients,
    learning_rate_factor,
    set_learning_rate,
)
from cosa_dist.training.state import TrainState


def assignment_settings(state: TrainState) -> AssignmentSettings:
    """Which pseudo-labels and further parts the configuration asks for."""
    settings, losses = state.config.assignment, state.config.losses
    contrast = losses.separation_contrast
    return AssignmentSettings(
        temperature=settings.temperature,
        downscale=settings.downscale,
        weigh=settings.reliability,
        perplexity=PerplexitySettings(settings.perplexity_scale, settings.perplexity_power),
        selection=SelectionSettings(contrast.max_perplexity, contrast.max_pixels)
        if losses.separation
        else None,
        count_activations=state.thresholds.learns,
    )


def assign(state: TrainState, batch: Batch, accelerator: Accelerator) -> Assignment:
    """Let the assignment network label the weak views of a micro-batch.

    Returns:
        Pseudo-labels at the crop's size and at the CAM's grid, without gradients.
    """
    network, settings = state.assignment, state.config.assignment
    with torch.inference_mode(), accelerator.autocast():
        seen = multi_scale(
            network,
            normalise(batch.weak),
            settings.scales,
            flip=settings.flip,
            aux_cam_last_scale_only=settings.aux_cam_last_scale_only,
            labels=batch.labels,
        )
    stride = cast(CosaNetwork, network).backbone.stride
    height, width = batch.weak.shape[-2:]
    return make_assignment(
        seen,
        batch.labels,
        batch.boxes,
        state.thresholds.current(),
        cam_size=(height // stride, width // stride),
        settings=assignment_settings(state),
    )


@part("normalisers")
def global_normalisers(assignments: Sequence[Assignment]) -> Normalisers:
    """Pixels and anchors to divide this rank's losses by, from all micro-batches of all ranks (ours)."""
    here = torch.stack([countings(assignment) for assignment in assignments]).sum(0)
    return normalisers(sum_over_ranks(here), len(assignments) * world_size())


@part("threshold search")
def learn_thresholds(source: ThresholdSource, assignments: Sequence[Assignment]) -> None:
    """Show the threshold search the global batch's activations, the same on every rank."""
    here = [a.histograms for a in assignments if a.histograms is not None]
    if source.learns and here:
        source.update(sum_over_ranks(torch.stack(here).sum(0)))


def _terms(
    network: nn.Module,
    batch: Batch,
    assignment: Assignment | None,
    divide_by: Normalisers | None,
    config: RunConfig,
) -> LossTerms:
    """Loss terms of the online network on the strong views of one micro-batch."""
    with part("online forward"):
        output = network(normalise(batch.strong), segment=assignment is not None)
    if assignment is None:
        return classification_terms(output, batch.labels)
    losses = config.losses
    return co_training_terms(
        output,
        batch.labels,
        assignment,
        batch.strong,
        batch.boxes,
        divide_by=divide_by,
        weights=LossWeights(
            losses.cam_to_seg, losses.seg_to_cam, losses.energy, losses.aux_weight, losses.separation
        ),
        energy=EnergySettings(**losses.energy_kernel.model_dump()),
        separation=SeparationSettings(
            losses.separation_contrast.temperature, losses.separation_contrast.space
        ),
    )


def training_step(
    state: TrainState,
    network: nn.Module,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    *,
    force_assignment: bool = False,
) -> tuple[dict[str, Tensor], list[Assignment]]:
    """Take one optimiser step with this rank's micro-batches of the global batch.

    Args:
        state: changed in place: networks, optimiser and step.
        network: the online network as the accelerator prepared it.
        batches: micro-batches on the device.
        accelerator: gradient synchronisation and autocast.
        force_assignment: run the assignment pass in the loss warm-up too (the released code does).

    Returns:
        The unweighted loss terms and the weighted total, means over the micro-batches, on the device; and
        the assignments.
    """
    config = state.config
    torch.manual_seed(hash((config.seed, state.step, rank())) % 2**63)
    set_learning_rate(
        state.optimizer,
        learning_rate_factor(state.step, config.training.steps, config.optimizer),
    )
    wanted = state.co_training or force_assignment
    assignments = [assign(state, batch, accelerator) for batch in batches if wanted]
    divide_by = global_normalisers(assignments) if state.co_training else None
    learn_thresholds(state.thresholds, assignments)

    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            terms = _terms(
                network, batch, assignments[index] if state.co_training else None, divide_by, config
            )
            with part("backward"):
                accelerator.backward(terms.total / len(batches))
        for name, value in terms.as_dict().items():
            sums[name] = sums.get(name, 0) + value / len(batches)

    if config.losses.zero_gradients_in_warmup:
        fill_missing_gradients(state.optimizer)
    with part("optimiser"):
        state.optimizer.step()
    update_ema(state.assignment, state.online, config.assignment.momentum)
    state.step += 1
    return sums, assignments
