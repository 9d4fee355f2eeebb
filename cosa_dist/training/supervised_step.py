"""One optimiser step of the second stage: cross-entropy with masks, and the moving average.

The same order as a co-training step, and the same rule that pixels are counted over all ranks and
micro-batches first, so that the loss of a global batch does not depend on how it is cut up (but for batch
norm, which sees what a GPU, or all GPUs, hold at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cosa_dist.collective import rank, sum_over_ranks, world_size
from cosa_dist.data.reading.loader import Batch
from cosa_dist.data.reading.views import normalise
from cosa_dist.model.network import update_ema
from cosa_dist.segmenter.loss import mask_loss, pixel_weights
from cosa_dist.training.optimizer import learning_rate_factor, set_learning_rate
from cosa_dist.training.state import TrainState


def supervised_step(
    state: TrainState, network: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Take one optimiser step with this rank's micro-batches of the global batch.

    Args:
        state: changed in place: networks, optimiser and step.
        network: the trained network as the accelerator prepared it.
        batches: micro-batches with masks, on the device.
        accelerator: gradient synchronisation and autocast.

    Returns:
        The loss (`masks`, and the same as `total`), a scalar on the device, mean over the micro-batches.

    Raises:
        ValueError: a batch without masks, or without the reliability that should weigh.
    """
    config = state.config
    torch.manual_seed(hash((config.seed, state.step, rank())) % 2**63)
    set_learning_rate(
        state.optimizer, learning_rate_factor(state.step, config.training.steps, config.optimizer)
    )
    weights = [pixel_weights(batch, config.segmenter.weigh) for batch in batches]
    # Gradients are means over ranks and micro-batches, so each loss is divided by the mean weight of those.
    counted = sum_over_ranks(torch.stack([weight.sum() for weight in weights]).sum())
    divide_by = counted / (len(batches) * world_size())

    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            output = network(normalise(batch.strong))
            assert batch.masks is not None
            loss = mask_loss(output.segmentation, batch.masks, weights[index], divide_by) / len(batches)
            accelerator.backward(loss)
        total = total + loss.detach()

    state.optimizer.step()
    update_ema(state.assignment, state.online, config.segmenter.momentum)
    state.step += 1
    return {"masks": total, "total": total}
