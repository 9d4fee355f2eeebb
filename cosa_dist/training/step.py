"""One optimiser step, from a global batch to updated networks.

Co-training reads: take this rank's micro-batches; the assignment network labels the weak views with its CAMs
and segmentations, unless the loss warm-up still runs; the online network predicts on the strong views; loss
terms; backward, step; EMA of the assignment network. The second stage is the same with masks in place of
pseudo-labels. Pixels are counted over all ranks and micro-batches first, so the loss of a global batch does
not depend on how it is cut up (but for batch norm). Searched thresholds learn from all of the global batch
and are used from the next step on, so that no micro-batch has to be kept until the last one is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cosa_dist.assignment.inference import multi_scale
from cosa_dist.assignment.pseudo_labels import Assignment, make_assignment
from cosa_dist.collective import rank, sum_over_ranks, world_size
from cosa_dist.data.reading.samples import Batch
from cosa_dist.data.reading.views import normalise
from cosa_dist.losses.objective import (
    LossNormalizers,
    LossTerms,
    classification_terms,
    co_training_terms,
    count_pixels,
    count_targets,
    loss_normalizers,
)
from cosa_dist.model.network import CosaNetwork, update_ema
from cosa_dist.segmenter.network import balanced, mask_loss, pixel_weights
from cosa_dist.stopwatch import one_thread, part
from cosa_dist.training.optimizer import (
    fill_missing_gradients,
    learning_rate_factor,
    limit_gradients,
    set_learning_rate,
    stepping_in_backward,
)
from cosa_dist.training.state import TrainState, with_idle_parameters


def training_step(
    state: TrainState, network: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> LossTerms:
    """Take one optimiser step with this rank's micro-batches of the global batch, on the device.

    `network` is the online network as the accelerator prepared it; the state is changed in place. Returns the
    unweighted loss terms and the weighted `total`, means over the micro-batches, and the `gradient_norm`, all
    on the device.

    Raises:
        ValueError: a segmenter's batch without masks, or without the reliability that should weigh.
    """
    config = state.config
    segmenter = config.kind == "segmenter"
    torch.manual_seed(hash((config.seed, state.step, rank())) % 2**63)
    set_learning_rate(
        state.optimizer, learning_rate_factor(state.step, config.training.steps, config.optimizer)
    )
    losses = supervised_losses if segmenter else cosa_losses
    terms_of_batches = losses(state, network, batches, accelerator)
    state.optimizer.zero_grad(set_to_none=True)
    means: LossTerms = {}
    stepped: set[Tensor] = set()
    norms: list[Tensor] = []
    distributed = isinstance(network, DistributedDataParallel)
    # Clipping needs all gradients before the first step.
    sparing = config.training.activation_checkpointing and len(batches) == 1 and world_size() == 1
    sparing = sparing and not config.optimizer.clip_norm
    backward = stepping_in_backward(state.optimizer, stepped, norms) if sparing else nullcontext()
    for index in range(len(batches)):
        last = index == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            terms = next(terms_of_batches)
            loss = terms["total"] / len(batches)
            with part("backward"), backward:
                accelerator.backward(with_idle_parameters(state, loss) if distributed else loss)
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / len(batches)

    for parameter in state.idle.get(state.co_training, ()):
        parameter.grad = None
    means["gradient_norm"] = limit_gradients(state.optimizer, config.optimizer.clip_norm, norms)
    if config.losses.zero_gradients_in_warmup and not segmenter:
        fill_missing_gradients(state.optimizer, stepped)
    with part("optimiser"):
        state.optimizer.step()
    ema_decay = config.segmenter.momentum if segmenter else config.assignment.momentum
    update_ema(state.assignment, state.online, ema_decay)
    state.step += 1
    return means


def cosa_losses(
    state: TrainState, network: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> Iterator[LossTerms]:
    """The method's loss terms of each micro-batch; the first waits for the pseudo-labels of all."""
    if not state.co_training:
        for batch in batches:
            yield classification_terms(_forward(network, batch, segment=False), batch.labels)
        return
    assignments = [assign(state, batch, accelerator) for batch in batches]
    normalizers = global_normalizers(assignments)
    learn_thresholds(state, assignments)
    for batch, assignment in zip(batches, assignments, strict=True):
        output = _forward(network, batch, segment=True)
        yield co_training_terms(output, batch, assignment, normalizers, state.config.losses)


def assign(state: TrainState, batch: Batch, accelerator: Accelerator) -> Assignment:
    """Let the assignment network label the weak views of a micro-batch, without gradients."""
    config, losses = state.config.assignment, state.config.losses
    with torch.inference_mode(), accelerator.autocast():
        output = multi_scale(
            state.assignment,
            normalise(batch.weak),
            config.scales,
            flip=config.flip,
            aux_cam_last_scale_only=config.aux_cam_last_scale_only,
            labels=batch.labels,
            most_labels=batch.most_tags,
            in_turn=state.config.training.activation_checkpointing,
        )
    stride = cast(CosaNetwork, state.assignment).backbone.stride
    height, width = batch.weak.shape[-2:]
    return make_assignment(
        output,
        batch.labels,
        batch.boxes,
        state.thresholds.current(),
        (height // stride, width // stride),
        config,
        separation=losses.separation_contrast if losses.separation else None,
        count_activations=state.thresholds.learns,
    )


@part("normalisers")
@one_thread()
def global_normalizers(assignments: Sequence[Assignment]) -> LossNormalizers:
    """What to divide this rank's losses by, from all micro-batches of all ranks (ours)."""
    counts = torch.stack([count_targets(assignment) for assignment in assignments]).sum(0)
    return loss_normalizers(sum_over_ranks(counts), len(assignments) * world_size())


@part("threshold search")
def learn_thresholds(state: TrainState, assignments: Sequence[Assignment]) -> None:
    """Show the threshold search the global batch's activations, the same on every rank."""
    histograms = [a.histograms for a in assignments if a.histograms is not None]
    if histograms:
        state.thresholds.update(sum_over_ranks(torch.stack(histograms).sum(0)))


@part("online forward")
def _forward(network: nn.Module, batch: Batch, **options: bool) -> Any:
    """The network's output on the strong views."""
    return network(normalise(batch.strong), **options)


def supervised_losses(
    state: TrainState, network: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> Iterator[LossTerms]:
    """The second stage's loss of each micro-batch, cross-entropy with masks, as `masks` and as `total`."""
    config = state.config.segmenter
    weights = [pixel_weights(batch, config.weigh) for batch in batches]
    masks = [cast(Tensor, batch.masks) for batch in batches]
    counts = sum_over_ranks(torch.stack([*map(count_pixels, masks, weights)]).sum(0))
    # Gradients are means over ranks and micro-batches, so each loss is divided by the mean weight of those.
    divide_by = counts.sum() / (len(batches) * world_size())
    for batch, mask, weight in zip(batches, masks, weights, strict=True):
        output = _forward(network, batch)
        weight = balanced(weight, mask, counts) if config.balance else weight
        loss = mask_loss(output.segmentation, mask, weight, divide_by)
        yield {"masks": loss, "total": loss}
