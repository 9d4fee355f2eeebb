"""The CoSA network (one backbone, two CAM classifiers, a segmentation decoder) and its moving average.

The assignment network starts as a copy of the online network (ours; the released code starts its heads from
other random numbers), is never trained by gradient, always runs in evaluation mode, and follows as an EMA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosa_dist.model.backbone import Backbone
from cosa_dist.stopwatch import part


class NetworkOutput(NamedTuple):
    """What one pass gives; C foreground classes, grid h x w of the backbone."""

    logits: Tensor  # [B, C] image logits of the main classifier
    aux_logits: Tensor  # [B, C] image logits of the auxiliary classifier
    cam: Tensor  # [B, C, h, w] raw class activation maps
    aux_cam: Tensor  # [B, C, h, w] raw auxiliary class activation maps
    segmentation: Tensor  # [B, C + 1, h, w] segmentation logits, background first
    features: Tensor  # [B, D, h, w] main feature map


@torch.library.custom_op("cosa_dist::float32_product", mutates_args=())
def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """Product of [C, D] with each of [B, D, N] to [B, C, N], without TF32 whatever is allowed elsewhere.

    An operator of its own, so that torch.compile leaves it alone; so is its gradient.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return torch.bmm(left.expand(len(right), -1, -1), right)
    finally:
        torch.set_float32_matmul_precision(allowed)


@float32_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return right.new_empty(right.shape[0], left.shape[0], right.shape[2])


def _keep_factors(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    left, right = ctx.saved_tensors
    of_left = of_right = None
    if ctx.needs_input_grad[0]:
        rows, columns = gradient.transpose(0, 1).flatten(1), right.transpose(1, 2).flatten(0, 1)
        of_left = float32_product(rows, columns[None])[0]
    if ctx.needs_input_grad[1]:
        of_right = float32_product(left.t(), gradient)
    return of_left, of_right


float32_product.register_autograd(_product_gradients, setup_context=_keep_factors)


def _project(features: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution in float32, also under autocast: [B, D, h, w] by [C, D, 1, 1] to [B, C, h, w].

    CAMs are compared with thresholds, for which the eight bits of bfloat16 are coarse, and so are the ten of
    TF32 on a GPU; these layers are too small to gain from either (ours).
    """
    device = features.device.type
    if device == "cuda":
        with torch.autocast(device, enabled=False):
            product = float32_product(weight.float().flatten(1), features.float().flatten(2))
            return product.unflatten(2, (features.shape[2], features.shape[3]))
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            maps = F.conv2d(features.float(), weight.float())
    else:
        maps = F.conv2d(features, weight)
    # From a transformer's features they come with the channels last, in which all that enlarges them is slow.
    return maps.contiguous()


class CamClassifier(nn.Module):
    """Multi-label classifier whose weights, applied at every position, give the CAM (released code)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(channels, classes, 1, bias=False).weight.detach())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return image logits [B, C] and the raw CAM [B, C, h, w] of features [B, D, h, w].

        The logits come from the global maximum of each channel, not from the maximum of the CAM.
        """
        # A maximum of its own: adaptive pooling has no repeatable gradient on GPUs.
        pooled = features.flatten(2).max(-1).values[:, :, None, None]
        return _project(pooled, self.weight).flatten(1), _project(features, self.weight)


class LargeFovDecoder(nn.Module):
    """Two dilated 3x3 convolutions and a 1x1, without bias and norm (released code, with dilation 5)."""

    def __init__(self, in_channels: int, outputs: int, channels: int, dilation: int) -> None:
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv6 = nn.Conv2d(in_channels, channels, 3, **spread)  # type: ignore[arg-type]
        self.conv7 = nn.Conv2d(channels, channels, 3, **spread)  # type: ignore[arg-type]
        self.conv8 = nn.Conv2d(channels, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return segmentation logits [B, C + 1, h, w] of features [B, D, h, w]."""
        hidden = F.relu(self.conv6(features))
        return _project(F.relu(self.conv7(hidden)), self.conv8.weight)


class CosaNetwork(nn.Module):
    """Backbone, classifier, auxiliary classifier and decoder (source: released code)."""

    def __init__(
        self, backbone: Backbone, classes: int, decoder_channels: int = 512, decoder_dilation: int = 5
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = CamClassifier(backbone.channels, classes)
        self.aux_classifier = CamClassifier(backbone.aux_channels, classes)
        self.decoder = LargeFovDecoder(backbone.channels, classes + 1, decoder_channels, decoder_dilation)

    def forward(self, images: Tensor, segment: bool = True) -> NetworkOutput:
        """Run images [B, 3, H, W], normalised with ImageNet's mean and deviation, through the network.

        With `segment=False` the decoder rests and the segmentation is an empty [B, C + 1, 0, 0]: nothing
        reads it while only the classification losses count.
        """
        features, aux_features = self.backbone(self.backbone.recoloured(images))
        logits, cam = self.classifier(features)
        aux_logits, aux_cam = self.aux_classifier(aux_features)
        if segment:
            segmentation = self.decoder(features)
        else:
            segmentation = features.new_empty((len(images), cam.shape[1] + 1, 0, 0))
        return NetworkOutput(logits, aux_logits, cam, aux_cam, segmentation, features)


def copy_network(online: nn.Module) -> nn.Module:
    """Return the assignment network: a deep copy without gradients, in evaluation mode.

    A frozen backbone is no copy: both networks share it.
    """
    backbone = getattr(online, "backbone", None)
    shared = {id(backbone): backbone} if isinstance(backbone, Backbone) and backbone.frozen else {}
    return copy.deepcopy(online, shared).requires_grad_(False).eval()


@contextmanager
def shared_backbone_once(networks: Iterable[nn.Module], in_batches: bool) -> Iterator[None]:
    """Let networks of one backbone run it once for each size, while they see the same images.

    Only `in_batches`, where a size tells which images: all of them.
    """
    networks = list(networks)
    found: list[Any] = [getattr(network, "backbone", None) for network in networks]
    compiled = any(network._compiled_call_impl is not None for network in networks)
    shared = len(found) > 1 and all(each is found[0] is not None for each in found)
    if not in_batches or not shared or compiled:
        yield
        return

    def once(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        known: dict[torch.Size, Any] = {}

        def remembered(images: Tensor) -> Any:
            if images.shape not in known:
                known[images.shape] = run(images)
            return known[images.shape]

        return remembered

    backbone = found[0]
    backbone.forward, backbone.pyramid = once(backbone.forward), once(backbone.pyramid)
    try:
        yield
    finally:
        del backbone.forward, backbone.pyramid


@torch.no_grad()
@part("EMA")
def update_ema(assignment: nn.Module, online: nn.Module, decay: float) -> None:
    """Update `a = decay a + (1 - decay) o` for every parameter; buffers are copied.

    Source: paper and released code (constant EMA decay, after every optimiser step).
    """
    pairs = zip(assignment.parameters(), online.parameters(), strict=True)
    own, other = zip(*((one.data, two.data) for one, two in pairs if one is not two), strict=True)
    torch._foreach_lerp_(own, other, 1.0 - decay)
    for buffer, source in zip(assignment.buffers(), online.buffers(), strict=True):
        buffer.copy_(source)
