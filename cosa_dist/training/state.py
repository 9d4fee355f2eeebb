"""Everything that a resume needs, the networks that a run trains, and the number format they compute in.

The random numbers of the views are keyed by seed, epoch and position, and those of the step by seed, step
and rank; so the state holds no generator: the step number determines them all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch._dynamo.config
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cosa_dist.assignment.threshold import ThresholdSource, threshold_source
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.evaluation.evaluator import EXPLICIT
from cosa_dist.model.backbone import Backbone, Colours
from cosa_dist.model.build import build_network, check_forward, check_input_size, check_maps, check_tag
from cosa_dist.model.network import CosaNetwork, copy_network
from cosa_dist.model.weights import adapted, parse_weight_source, tensors_for
from cosa_dist.segmenter.network import Segmenter, build_segmenter
from cosa_dist.training.optimizer import build_optimizer

TrainedNetwork = CosaNetwork | Segmenter
MOST_GRAPHS = 32
"""of one network's code that `training.compile` keeps"""


@dataclass
class TrainState:
    """Both networks, the optimiser, the thresholds, and how far the run has come."""

    config: RunConfig
    online: TrainedNetwork  # the network itself, never a wrapper of it
    assignment: nn.Module  # its moving average
    optimizer: torch.optim.Optimizer
    step: int = 0  # finished optimiser steps; the next sample's position is `step * global_batch_size`
    best_score: float = float("-inf")  # highest unfiltered mIoU (%) of either network so far
    seconds: float = 0.0  # training time so far, over all resumes
    thresholds: ThresholdSource = field(init=False)  # of both CAMs, on the networks' device
    idle: dict[bool, list[nn.Parameter]] = field(init=False, default_factory=dict)
    """parameters that the loss does not reach, before and in co-training; filled by several ranks only"""

    def __post_init__(self) -> None:
        device = next(self.online.parameters()).device
        self.thresholds = threshold_source(self.config.assignment.threshold, device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Both networks by the names that reports and metrics use."""
        return dict(zip(network_names(self.config), (self.online, self.assignment), strict=True))

    @property
    def co_training(self) -> bool:
        """Whether the next step uses all losses (not only the classification's)."""
        return self.config.kind == "cosa" and self.step >= self.config.losses.warmup_steps


def build_trained_network(config: RunConfig, classes: int, *, load_weights: bool = True) -> TrainedNetwork:
    """Create the network that the run trains, for `classes` foreground classes (errors: `check_network`).

    Without `load_weights` those that training starts from need not be there.
    """
    model, seed = config.model, config.seed
    if config.kind == "segmenter":
        return build_segmenter(model, config.segmenter, classes, seed, load_weights=load_weights)
    return build_network(model, classes, seed, load_weights=load_weights)


def load_network(
    config: RunConfig, state: dict[str, Tensor], device: torch.device, colours: Colours | None = None
) -> TrainedNetwork:
    """A run's network with trained tensors, in evaluation mode; RuntimeError if they do not fit.

    This process then computes as the run did; `colours` are what the tensors' file says of them.
    """
    set_arithmetic(config.training.matmul_precision, config.training.deterministic)
    network = build_trained_network(config, classes_of(state), load_weights=False).to(device).eval()
    network.load_state_dict(state)
    network.backbone.colours = colours or network.backbone.colours
    return network


def classes_of(state: dict[str, Tensor]) -> int:
    """Number of foreground classes of a trained network's tensors."""
    if "head.weight" in state:
        return len(state["head.weight"]) - 1
    return len(state["classifier.weight"])


def network_names(config: RunConfig) -> tuple[str, str]:
    """What the trained network and its moving average are called in reports and metrics."""
    return ("online", "average") if config.kind == "segmenter" else ("online", "assignment")


def build_state(
    config: RunConfig, classes: int, device: torch.device, *, load_weights: bool = True
) -> TrainState:
    """Create the fresh state of a run on `device`, equal on every rank (errors: `check_network`).

    Without `load_weights` the network is random: a checkpoint is to follow.
    """
    online = build_trained_network(config, classes, load_weights=load_weights).to(device)
    _check_backbone(config, online.backbone)
    online.backbone.recomputes = config.training.activation_checkpointing
    return TrainState(
        config=config,
        online=online,
        assignment=copy_network(online),
        optimizer=build_optimizer(online, config.optimizer, spare_norms=config.kind == "segmenter"),
    )


def check_network(config: RunConfig, classes: int, *, new: bool = True) -> None:
    """Refuse, without a download, what a state cannot be built of, or a new run had better not be.

    Raises ValueError for a backbone, weights or input sizes that do not fit, and FileNotFoundError for a
    weight file that is not there.
    """
    source = parse_weight_source(config.model.weights)
    if new:  # what an earlier version began goes on
        check_maps(config.model)
    with torch.device("meta"):
        network = build_trained_network(config, classes, load_weights=False)
    _check_backbone(config, network.backbone)
    for option, side, scales in _sizes(config):
        check_forward(network.backbone.eval(), option, side, scales, dense=config.kind == "segmenter")
    if source.tag:
        check_tag(config.model.backbone, source.tag)
    elif source.file is not None:
        tensors_for(network, source.file, config.model.aux_layer)


def check_squares(config: RunConfig, scales: Sequence[float]) -> None:
    """Raise ValueError if a run's network cannot take squares of `evaluation.size`, as a labelling does.

    Its evaluation may use other sizes.
    """
    with torch.device("meta"):
        backbone = build_trained_network(config, 1, load_weights=False).backbone.eval()
    option, side = "evaluation.size", config.evaluation.size
    check_input_size(backbone, option, side, scales, training=False)
    check_forward(backbone, option, side, scales, dense=config.kind == "segmenter")


def check_same_encoder(first: RunConfig, second: RunConfig) -> None:
    """Raise `ConfigError` if a second stage cannot start from the encoder of its first."""
    names = [first.model.backbone, second.model.backbone]
    if names[0] != names[1]:
        raise ConfigError(
            f"stage_one.start encoder: the stages have different backbones, {' and '.join(names)}"
        )
    with torch.device("meta"):
        one, two = (build_trained_network(each, 1, load_weights=False).backbone for each in (first, second))
        found = {key: value.shape for key, value in adapted(two, one.model.state_dict()).items()}
    wanted = {key: value.shape for key, value in two.model.state_dict().items()}
    if others := [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]:
        raise ConfigError(
            f"stage_one.start encoder: the stages' encoders differ in {', '.join(others[:3])}: "
            f"model.backbone_options are {first.model.backbone_options} and {second.model.backbone_options}"
        )


def _check_backbone(config: RunConfig, backbone: Backbone) -> None:
    for option, side, scales in _sizes(config):
        check_input_size(backbone, option, side, scales, training=option == "data.crop_size")
    for option, asked in (
        ("training.activation_checkpointing", config.training.activation_checkpointing),
        ("optimizer.layer_decay", config.optimizer.layer_decay < 1),
    ):
        if asked and not backbone.has_blocks:  # batch norms would count each batch twice
            raise ValueError(
                f"{option}: {config.model.backbone} is no transformer (ViT, DeiT, EVA, Swin); leave it out"
            )


def _sizes(config: RunConfig) -> list[tuple[str, int, tuple[float, ...]]]:
    """The options that say which sizes a run's networks meet, with their values and scales."""
    crop, whole = [1.0], [*config.evaluation.scales]
    if config.kind != "segmenter":
        crop += config.assignment.scales
        whole += config.pseudo_masks.scales  # by which it labels for a second stage
    sizes = [("data.crop_size", config.data.crop_size, tuple(dict.fromkeys(crop)))]
    if config.evaluation.in_batches:  # else each image has a size of its own
        sizes.append(("evaluation.size", config.evaluation.size, tuple(dict.fromkeys(whole))))
    return sizes


def resolve_precision(setting: str, device_type: str) -> str:
    """Turn `auto|fp32|bf16` into Accelerate's `no` or `bf16`; `auto` is bf16 on GPUs that have it."""
    gpu = device_type == "cuda"
    # Older GPUs only emulate bf16, slower than float32.
    has_bf16 = not gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "bf16" and not has_bf16:
        raise ValueError("training.precision bf16: this GPU has no bf16; use fp32")
    return "bf16" if setting == "bf16" or (setting == "auto" and gpu and has_bf16) else "no"


def autocast(setting: str, device: torch.device) -> torch.autocast:
    """The context in which a trained network runs outside training, in the format of its run's setting."""
    enabled = resolve_precision(setting, device.type) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def set_arithmetic(matmul_precision: str, deterministic: bool = False) -> None:
    """Set how this process computes on a GPU, as `training.matmul_precision` and `.deterministic` say.

    With `highest`, matrix products and convolutions in float32 use no TF32; cuDNN does unless it is told.
    Called before the first of them. Deterministic operations raise a RuntimeError where PyTorch has none.
    """
    torch.set_float32_matmul_precision(matmul_precision)
    torch.backends.cudnn.allow_tf32 = matmul_precision != "highest"
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling new memory is an aid to debugging that costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compile_networks(state: TrainState) -> None:
    """Compile both networks in place (`training.compile`)."""
    # They share their code, and so its limit of graphs, after which PyTorch warns and runs without: there is
    # one for each phase, number format, size and kind of batch (5 to 7 in training, more in an evaluation).
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, MOST_GRAPHS)
    for network in (state.online, state.assignment):
        network.compile()


def make_accelerator(
    precision: str, world_size: int, cpu: bool, *, bf16_gradients: bool = False
) -> Accelerator:
    """Return an Accelerator of the precision `auto`, `fp32` or `bf16` that has seen all ranks."""
    # A process may train several runs, of different formats; Accelerate would refuse the second format.
    AcceleratorState._reset_state(reset_partial_state=world_size == 1)
    hook = DDPCommunicationHookType.BF16 if bf16_gradients else DDPCommunicationHookType.NO
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=resolve_precision(precision, "cpu" if cpu else "cuda"),
        # Without a view the reduction saves a copy of all gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, comm_hook=hook)],
    )
    # On the CPU Accelerate ignores a running process group unless told so: every rank would train alone.
    if accelerator.num_processes != world_size:
        raise RuntimeError(f"Accelerate sees {accelerator.num_processes} processes, the run has {world_size}")
    return accelerator


def wrap_online(state: TrainState, accelerator: Accelerator) -> nn.Module:
    """The online network as the accelerator prepares it; the state's optimiser becomes the accelerator's.

    DistributedDataParallel lays out its buckets anew by the order in which the first gradients come. That of
    a first step is not that of a resumed one, and sums over three ranks or more depend on the layout: so the
    first gradients are zeros, in the order of the parameters.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        # There the backward pass of PyTorch's fused attention takes three times as long as in float32, that
        # of explicit attention a fifth of it. Without gradients, as in the assignment network, both are fast.
        for module in state.online.modules():
            if getattr(module, "fused_attn", False):  # an attribute of timm's, unknown to mypy
                vars(module).update({"fused_attn": False, EXPLICIT: True})
    network, state.optimizer = accelerator.prepare(state.online, state.optimizer)
    if isinstance(network, DistributedDataParallel):
        module, network.module = network.module, _Zero(state.online)
        network().backward()
        network.module = module
        network.zero_grad(set_to_none=True)
    return cast(nn.Module, network)


class _Zero(nn.Module):
    """Gives 0 with a gradient of 0 for each parameter of another network, which is no part of this one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def forward(self) -> Tensor:
        return zero_of(self.trained)


def zero_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """0 with a gradient of 0 for each of the parameters (one or more), whatever they hold."""
    return torch.stack([parameter.flatten()[:0].sum() for parameter in parameters]).sum()


def with_idle_parameters(state: TrainState, loss: Tensor) -> Tensor:
    """The loss, with a gradient of 0 for the parameters that it does not reach.

    DistributedDataParallel waits for a gradient of each, and looking for those that get none would cost a
    search and an exchange in each step; which they are depends on the phase alone.
    """
    if state.co_training not in state.idle:
        reached, seen, nodes = set(), set(), [loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            reached.add(id(getattr(node, "variable", None)))
            nodes += [following for following, _ in node.next_functions]
        trained = [parameter for parameter in state.online.parameters() if parameter.requires_grad]
        state.idle[state.co_training] = [one for one in trained if id(one) not in reached]
    idle = state.idle[state.co_training]
    return loss + zero_of(idle) if idle else loss
