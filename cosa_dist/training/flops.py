"""Floating-point operations and activation memory of a run's networks, counted without computing them.

The networks run on fake tensors, which have a shape and nothing else, under PyTorch's counter. An operation
is one multiplication or one addition of a matrix product, a convolution or an attention: the usual count
behind a model FLOP utilisation (MFU), their rate as a share of what the GPU's data sheet gives.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import RunConfig
from cosa_dist.training.state import build_trained_network, resolve_precision

BYTES = 4
"""of a float32 number"""
_HOPPER = {"fp32": 67.0, "tf32": 494.5, "bf16": 989.0}
PEAK_TFLOPS = {
    "rtx3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71.0},
    "a100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0},
    "h100": _HOPPER,
    "h200": _HOPPER,
}
"""data sheets' dense peaks by number format, 10^12 operations per second"""
DEVICE_NAMES = {
    "rtx3090": r"RTX 3090$",
    "a100": r"A100(?!.*MIG)",
    "h100": r"\bH100(?!.*(PCIe|NVL|MIG))",
    "h200": r"\bH200(?!.*(NVL|MIG))",
}
"""patterns of what CUDA calls them; other forms of the same GPU have other peaks"""
log = logging.getLogger(__name__)


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
        with torch.device("meta"):  # where no weight is drawn
            self.network = build_trained_network(config, classes, load_weights=False).train()
        self.segmenter = config.kind == "segmenter"
        self.mode = FakeTensorMode()
        self.network.backbone.recomputes = config.training.activation_checkpointing
        self.tensors: list[Tensor] = []
        for module in self.network.modules():
            # Not for the time of a call: blocks that are computed again read their parameters later.
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        with self.mode:
                            fake: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                        store[name] = fake.requires_grad_(tensor.requires_grad)
                        self.tensors.append(fake)

    def __call__(self, side: int, images: int = 1, segment: bool = True) -> Any:
        """The output for fake images `[B, 3, side, side]`; to be called inside `mode`."""
        pictures = torch.empty(images, 3, side, side)
        return self.network(pictures) if self.segmenter else self.network(pictures, segment)

    def train_operations(self, side: int, segment: bool) -> int:
        """Operations of the forward and the backward pass of one image."""

        def train() -> None:
            output = self(side, segment=segment)
            (output.segmentation.sum() if self.segmenter else _sum(output, segment)).backward()

        with self.mode:
            return counted(train)

    def assignment_operations(self, config: RunConfig) -> int:
        """Operations of the assignment network's passes over one image."""
        sides = [int(scale * config.data.crop_size) for scale in config.assignment.scales]
        with self.mode, torch.no_grad():
            passes = [counted(lambda side=side: self(side)) for side in sides]  # type: ignore[misc]
        return (2 if config.assignment.flip else 1) * sum(passes)

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
    one, two = (network.kept_bytes(side, images, bf16) for images in (1, 2))
    parameters = list(network.network.parameters())
    return Footprint(
        assignment_pass=network.assignment_operations(config),
        training_pass=network.train_operations(side, segment=True),
        warmup=network.train_operations(side, segment=False),
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        activations=two - one,
        kept_once=2 * one - two,
        classes=classes,
        recomputed=network.block_bytes(side, bf16),
    )


def image_operations(config: RunConfig, classes: int, *, co_training: bool) -> int:
    """Operations of one image of the run's step in this phase, of a segmenter's in its only one.

    0, with a warning, for a network that does not run on fake tensors. Equal networks are counted once.
    """
    sections = {"kind", "data", "model", "segmenter", "assignment"}
    return _image_operations(config.model_dump_json(include=sections), classes, co_training)


@functools.lru_cache
def _image_operations(settings: str, classes: int, co_training: bool) -> int:
    config = build_config(json.loads(settings))
    try:
        network = _FakeNetwork(config, classes)
        trained = network.train_operations(config.data.crop_size, segment=co_training)
        return trained + (network.assignment_operations(config) if co_training else 0)
    except Exception as error:
        log.warning("operations of %s cannot be counted: %s", config.model.backbone, str(error)[:200])
        return 0


def known_gpu(name: str) -> str | None:
    """Key in `PEAK_TFLOPS` of a device by its full name, such as "NVIDIA H200"; None of another."""
    return next((gpu for gpu, pattern in DEVICE_NAMES.items() if re.search(pattern, name)), None)


def peak_rate(config: RunConfig, device: torch.device) -> float | None:
    """Operations per second of this GPU by its data sheet, in the number format that the run computes in.

    None for a GPU that is not in the table, and for a CPU.
    """
    if device.type != "cuda":
        return None
    known = known_gpu(torch.cuda.get_device_name(device))
    form = "fp32" if config.training.matmul_precision == "highest" else "tf32"
    if resolve_precision(config.training.precision, device.type) == "bf16":
        form = "bf16"
    return 1e12 * PEAK_TFLOPS[known][form] if known else None
