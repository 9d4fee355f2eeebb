"""AdamW in four parameter groups, and the learning rate as a function of the step (released code)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from cosa_dist.config.method import OptimizerConfig
from cosa_dist.stopwatch import part

# Beside everything of one dimension: norms and biases.
NOT_DECAYED = ("pos_embed", "relative_position_bias_table")
GROUPS = ("encoder", "norm", "heads' norm", "classifiers", "decoder")
"""in the order of the optimiser's state in checkpoints"""
BLOCK = re.compile(r"backbone\..*?\bblocks\.\d+\.")
STEP_EVERY = 32 * 2**20
"""bytes of gradients that `stepping_in_backward` gathers before it steps"""


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, *, spare_norms: bool = False
) -> torch.optim.AdamW:
    """Return AdamW over encoder, encoder norms, classifiers and decoder.

    Classifiers, decoder and head learn `head_factor` times faster. Weight decay applies to every parameter,
    as in the released code; with `spare_norms`, not to norms and position tables, as is usual for Swin. With
    `layer_decay` encoder and norms have a group for each block (see `blocks_behind`). Each group keeps its
    peak rate as `peak`.
    """
    behind = blocks_behind(network) if config.layer_decay < 1 else {}
    members: dict[tuple[int, int], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            place = GROUPS.index(_group_of(name, parameter, spare_norms))
            members.setdefault((place, behind.get(name, 0)), []).append(parameter)
    groups = []
    for (place, blocks), parameters in sorted(members.items()):
        name = GROUPS[place]
        factor = 1.0 if name in ("encoder", "norm") else config.head_factor
        rate = config.learning_rate * factor * config.layer_decay**blocks
        spared = {"weight_decay": 0.0} if spare_norms and "norm" in name else {}
        groups.append({"params": parameters, "name": name, "peak": rate, "lr": rate, **spared})
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def blocks_behind(network: nn.Module) -> dict[str, int]:
    """How many blocks follow that of each parameter of a network's encoder, by name.

    The final norm goes with the last block, what lies between two with the next one, and what lies before
    the first one counts as a block of its own (as in BEiT and MAE, but the last block learns at full rate).
    """
    names = [name for name, _ in network.named_parameters() if name.startswith("backbone.")]
    blocks = list(dict.fromkeys(found[0] for name in names if (found := BLOCK.match(name))))
    behind, result = 0, {}
    for name in reversed(names):
        found = BLOCK.match(name)
        behind = len(blocks) - 1 - blocks.index(found[0]) if found else behind
        result[name] = behind + (not found and behind == len(blocks) - 1)
    return result


def _group_of(name: str, parameter: nn.Parameter, spare_norms: bool) -> str:
    if spare_norms and (parameter.ndim == 1 or any(part in name for part in NOT_DECAYED)):
        return "norm" if name.startswith("backbone.") else "heads' norm"
    if name.startswith(("decoder.", "head.")):
        return "decoder"
    if name.startswith(("classifier.", "aux_classifier.")):
        return "classifiers"
    return "norm" if "norm" in name else "encoder"


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak rate used by the optimiser step number `step` (0-based).

    Linear from `warmup_ratio` during the warm-up, then polynomial decay to 0 that counts from step 0, not
    from the end of the warm-up (released code).
    """
    if step < config.warmup_steps:
        return 1.0 - (1.0 - step / config.warmup_steps) * (1.0 - config.warmup_ratio)
    return (1.0 - step / total_steps) ** config.power if step < total_steps else 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


@contextmanager
def stepping_in_backward(
    optimizer: torch.optim.Optimizer, stepped: set[Tensor], norms: list[Tensor]
) -> Iterator[None]:
    """Step parameters while the backward pass inside goes on and free their gradients.

    Notes those `stepped`, and the `norms` of their gradients.

    AdamW steps each parameter by itself, so the weights are those of one step at the end; but only some 32 MB
    of gradients are there at once. For a backward pass that makes whole gradients: one rank, one micro-batch.
    Parameters whose gradients are still there at the end are left to an ordinary step.
    """
    waiting: list[Tensor] = []

    def arrived(parameter: Tensor) -> None:
        waiting.append(parameter)
        if sum(each.nbytes for each in waiting) >= STEP_EVERY:
            norms.append(_norm(waiting))
            optimizer.step()
            for each in waiting:
                each.grad = None
            stepped.update(waiting)
            waiting.clear()

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    hooks = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fill_missing_gradients(optimizer: torch.optim.Optimizer, stepped: Collection[Tensor] = ()) -> None:
    """Give parameters without a gradient a zero one, but for those that have been `stepped` already.

    The released code multiplies the gated losses by 0 during the loss warm-up, so AdamW decays the
    decoder and counts its steps meanwhile; zero gradients reproduce that without computing the losses.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None and parameter not in stepped:
                parameter.grad = torch.zeros_like(parameter)


@part("gradient norm")
def limit_gradients(
    optimizer: torch.optim.Optimizer, most: float, norms_of_stepped: Sequence[Tensor] = ()
) -> Tensor:
    """Norm of all gradients as one vector, 0-dimensional, before they are scaled down to `most` (0: never).

    Of those that are gone already, `stepping_in_backward` gave the norms. Waits for no device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = [*norms_of_stepped, *([_norm(parameters)] if parameters else [])]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if most:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
