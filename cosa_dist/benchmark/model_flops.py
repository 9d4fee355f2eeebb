"""Floating-point operations and activation memory of a run's networks, counted without computing anything.

The networks run on fake tensors, which have a shape and nothing else, under PyTorch's counter. An
operation is one multiplication or one addition of a matrix product, a convolution or an attention, the usual
count behind a model FLOP utilisation (MFU); everything else of a step is not counted, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cosa_dist.config.schema import RunConfig
from cosa_dist.model.network import CosaNetwork, build_network

BYTES = 4
"""Of a float32 number."""


@dataclass(frozen=True)
class StepFlops:
    """Operations of one optimiser step, all images of the batch together."""

    assignment_pass: int
    forward: int
    backward: int
    warmup_forward: int
    """of the loss warm-up, in which the decoder rests"""
    warmup_backward: int

    def of(self, images: int) -> StepFlops:
        """The same for a batch of so many images, if this is of one image."""
        return StepFlops(*(images * value for value in astuple(self)))

    @property
    def co_training(self) -> int:
        """Of a co-training step."""
        return self.assignment_pass + self.forward + self.backward

    @property
    def warmup(self) -> int:
        """Of a step in the loss warm-up, the assignment pass skipped."""
        return self.warmup_forward + self.warmup_backward


@dataclass(frozen=True)
class NetworkSize:
    """What a network occupies."""

    parameters: int
    trained_parameters: int
    activations: int
    """bytes that a forward pass keeps of each image for the backward pass"""
    kept_once: int = 0
    """bytes that it keeps whatever the number of images, such as bf16 copies of the weights"""


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def counter() -> FlopCounterMode:
    """PyTorch's counter, which also knows the fused attention of the CPU."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def counted(work: Callable[[], object]) -> int:
    """Operations of a call."""
    count = counter()
    with count:
        work()
    return int(count.get_total_flops())


class FakeNetwork:
    """A network of fake tensors: it has the shapes of the real one and takes neither memory nor time."""

    def __init__(self, network: CosaNetwork) -> None:
        """Take the shapes of `network`."""
        self.network = network.train()
        self.mode = FakeTensorMode()
        named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.tensors: dict[str, Tensor] = {
            name: self.mode.from_tensor(tensor) for name, tensor in named.items()
        }

    def __call__(self, images: Tensor, segment: bool = True) -> Any:
        """What the network makes of fake images `[B, 3, H, W]`."""
        return torch.func.functional_call(self.network, self.tensors, (images, segment))

    def images(self, side: int, number: int = 1) -> Tensor:
        """Fake images of this side; to be called inside `mode`."""
        return torch.empty(number, 3, side, side)


def _fake_network(config: RunConfig, classes: int) -> FakeNetwork:
    shape = config.model.model_copy(update={"weights": "none"})
    return FakeNetwork(build_network(shape, classes, 0))


def _forward_and_backward(network: FakeNetwork, side: int, segment: bool) -> tuple[int, int]:
    """Operations of one image's forward and backward pass."""
    found: list[Any] = []
    with network.mode:
        forward = counted(lambda: found.append(network(network.images(side), segment)))
        output = found[0]
        maps = [output.logits, output.aux_logits] + ([output.cam, output.segmentation] if segment else [])
        total = torch.stack([part.float().sum() for part in maps]).sum()
        backward = counted(total.backward)
    return forward, backward


def image_flops(config: RunConfig, classes: int, sides: list[int]) -> int:
    """Operations of forward passes of one image at each of these sides (mirror images not counted)."""
    network = _fake_network(config, classes)
    with network.mode, torch.no_grad():
        return sum(counted(lambda side=side: network(network.images(side))) for side in sides)  # type: ignore[misc]


def step_flops(config: RunConfig, classes: int, images: int) -> StepFlops:
    """Operations of one optimiser step.

    Args:
        config: of the run.
        classes: C foreground classes.
        images: of the step (the global batch, or one worker's part).
    """
    side = config.data.crop_size
    scaled = [int(scale * side) for scale in config.assignment.scales]
    views = 2 if config.assignment.flip else 1
    forward, backward = _forward_and_backward(_fake_network(config, classes), side, True)
    warmup_forward, warmup_backward = _forward_and_backward(_fake_network(config, classes), side, False)
    return StepFlops(
        assignment_pass=views * images * image_flops(config, classes, scaled),
        forward=images * forward,
        backward=images * backward,
        warmup_forward=images * warmup_forward,
        warmup_backward=images * warmup_backward,
    )


@dataclass(frozen=True)
class Footprint:
    """What one image costs a run."""

    flops: StepFlops
    size: NetworkSize
    classes: int


def footprint(config: RunConfig, classes: int, bf16: bool) -> Footprint:
    """Operations and memory of one image of the run."""
    return Footprint(step_flops(config, classes, 1), network_size(config, classes, bf16), classes)


def network_size(config: RunConfig, classes: int, bf16: bool = False) -> NetworkSize:
    """Parameters, and the bytes that a forward pass keeps for the backward pass.

    Args:
        config: of the run.
        classes: C foreground classes.
        bf16: whether the forward pass runs under autocast.
    """
    network = _fake_network(config, classes)
    one, two = (_kept_bytes(network, config.data.crop_size, images, bf16) for images in (1, 2))
    parameters = list(network.network.parameters())
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        activations=two - one,
        kept_once=2 * one - two,
    )


def _kept_bytes(network: FakeNetwork, side: int, images: int, bf16: bool) -> int:
    """Bytes that a forward pass of some images keeps, parameters left out, shared memory counted once."""
    own = {tensor.untyped_storage()._cdata for tensor in network.tensors.values()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    cast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with network.mode, cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(network.images(side, images))
    return sum(kept.values())
