"""Floating-point operations and activation memory of a run's networks, counted without computing them.

The networks run on fake tensors, which have a shape and nothing else, under PyTorch's counter. An operation
is one multiplication or one addition of a matrix product, a convolution or an attention: the usual count
behind a model FLOP utilisation (MFU).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cosa_dist.config.schema import RunConfig
from cosa_dist.model.build import build_network

BYTES = 4
"""of a float32 number"""


@dataclass(frozen=True)
class Footprint:
    """What one image costs a run (operations, activations), and what the network occupies."""

    assignment_pass: int
    training_pass: int
    """forward and backward"""
    warmup: int
    """forward and backward in the loss warm-up, in which the decoder rests"""
    parameters: int
    trained_parameters: int
    activations: int
    """bytes that a forward pass keeps of each image for the backward pass"""
    kept_once: int
    """bytes that it keeps whatever the number of images, such as bf16 copies of the weights"""
    classes: int
    recomputed: int = 0
    """bytes that one block keeps of each image while the backward pass computes it again"""

    @property
    def co_training(self) -> int:
        """Operations of one image in a co-training step."""
        return self.assignment_pass + self.training_pass


def counted(work: Callable[[], object]) -> int:
    """Operations of a call; PyTorch's counter is told of the fused attention of the CPU."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping: dict[Any, Any] = {
        cpu_attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        cpu_backward: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
            gradient, query, key, value
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as count:
        work()
    return int(count.get_total_flops())


class _FakeNetwork:
    """The run's network with fake tensors for its parameters: no memory, no time."""

    def __init__(self, config: RunConfig, classes: int) -> None:
        self.network = build_network(config.model.model_copy(update={"weights": "none"}), classes, 0).train()
        self.mode = FakeTensorMode()
        self.network.backbone.recomputes = config.training.activation_checkpointing
        self.tensors: list[Tensor] = []
        for module in self.network.modules():
            # Not for the time of a call: blocks that are computed again read their parameters later.
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        fake: Any = self.mode.from_tensor(tensor)
                        store[name] = fake
                        self.tensors.append(fake)

    def __call__(self, side: int, images: int = 1, segment: bool = True) -> Any:
        """The output for fake images `[B, 3, side, side]`; to be called inside `mode`."""
        return self.network(torch.empty(images, 3, side, side), segment)

    def train_operations(self, side: int, segment: bool) -> int:
        """Operations of the forward and the backward pass of one image."""
        with self.mode:
            return counted(lambda: _sum(self(side, segment=segment), segment).backward())

    def kept_bytes(self, side: int, images: int, bf16: bool) -> int:
        """Bytes that a forward pass keeps, parameters left out, shared memory counted once."""
        cast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        kept = _Kept()
        with self.mode, cast, kept:
            self(side, images)
        return kept.bytes_beside(self.tensors)

    def block_bytes(self, side: int, bf16: bool) -> int:
        """The same of the one block that keeps most of one image; 0 if nothing is computed again."""
        backbone, largest = self.network.backbone, [0]

        def measured(block: Callable[..., Tensor], *inputs: object) -> Tensor:
            kept = _Kept()
            with kept:
                tokens = block(*inputs)
            largest.append(kept.bytes_beside(self.tensors))
            return tokens

        if not backbone.recomputes:
            return 0
        cast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        backbone.run_block = measured  # type: ignore[method-assign]
        with self.mode, cast:
            self(side)
        del backbone.run_block
        return max(largest)


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """The tensors that are kept for a backward pass inside."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self.tensors.setdefault(tensor.untyped_storage()._cdata, tensor)  # held: its address is not reused
        return tensor

    def bytes_beside(self, others: list[Tensor]) -> int:
        """Bytes of their memory, but for that of others."""
        own = {tensor.untyped_storage()._cdata for tensor in others}
        return sum(self.tensors[each].untyped_storage().nbytes() for each in self.tensors.keys() - own)


def _sum(output: Any, segment: bool) -> Tensor:
    maps = [output.logits, output.aux_logits] + ([output.cam, output.segmentation] if segment else [])
    return torch.stack([part.float().sum() for part in maps]).sum()


def footprint(config: RunConfig, classes: int, bf16: bool = False) -> Footprint:
    """Operations and memory of one image of the run with C `classes`; `bf16`: under autocast."""
    network, side = _FakeNetwork(config, classes), config.data.crop_size
    views = 2 if config.assignment.flip else 1
    with network.mode, torch.no_grad():
        sides = [int(scale * side) for scale in config.assignment.scales]
        passes = [counted(lambda scaled=scaled: network(scaled)) for scaled in sides]  # type: ignore[misc]
    one, two = (network.kept_bytes(side, images, bf16) for images in (1, 2))
    parameters = list(network.network.parameters())
    return Footprint(
        assignment_pass=views * sum(passes),
        training_pass=network.train_operations(side, segment=True),
        warmup=network.train_operations(side, segment=False),
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        activations=two - one,
        kept_once=2 * one - two,
        classes=classes,
        recomputed=network.block_bytes(side, bf16),
    )
