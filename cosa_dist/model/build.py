"""Create backbones by their timm names, and networks on them with random or loaded weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.models import Eva, PretrainedCfg, VisionTransformer, get_pretrained_cfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from cosa_dist.atomic import atomic_file
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.method import ModelConfig, names_a_file
from cosa_dist.model.backbone import IMAGENET_COLOURS, Backbone, Colours
from cosa_dist.model.backbone_convolutional import ConvolutionalBackbone
from cosa_dist.model.backbone_swin import SwinBackbone
from cosa_dist.model.backbone_transformer import TransformerBackbone
from cosa_dist.model.network import CosaNetwork
from cosa_dist.model.weight_file import save_tensors
from cosa_dist.model.weights import WeightSource, parse_weight_source, tensors_for

Kind = tuple[Callable[[Any, int], Backbone], dict[str, Any]]
_SWIN: Kind = (SwinBackbone, {"strict_img_size": False, "always_partition": True})
# What wraps timm's models of a class, and what they are created with; all others are convolutional.
KINDS: dict[type[nn.Module], Kind] = {
    SwinTransformer: _SWIN,
    SwinTransformerV2: _SWIN,
    Eva: (TransformerBackbone, {"dynamic_img_size": True}),
    VisionTransformer: (TransformerBackbone, {}),
}
CANNOT_CREATE = (RuntimeError, TypeError, OSError, AttributeError, AssertionError)
"""what timm raises for a network that it does not know, or not with such options"""
LAST_NORMS = ("norm", "fc_norm", "neck")
"""what timm's models call the norm behind their last map"""
NetworkT = TypeVar("NetworkT", bound=nn.Module)
log = logging.getLogger(__name__)


def build_network(config: ModelConfig, classes: int, seed: int, *, load_weights: bool = True) -> CosaNetwork:
    """Create the online CoSA network for `classes` foreground classes; see `build_on_backbone`."""
    channels, dilation = config.decoder_channels, config.decoder_dilation
    return build_on_backbone(
        config, seed, lambda backbone: CosaNetwork(backbone, classes, channels, dilation), load_weights
    )


def build_on_backbone(
    config: ModelConfig, seed: int, make: Callable[[Backbone], NetworkT], load_weights: bool = True
) -> NetworkT:
    """Create a backbone, `make` a network on it, and load the weights that `model.weights` names.

    Without `load_weights` those need not be there, and the network is random. Random parts are drawn from
    `seed` alone, so every rank starts from the same weights; the caller's random state is left as it was.
    """
    source = parse_weight_source(config.weights) if load_weights else WeightSource()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build_backbone(config, source.tag)
        backbone.colours = normalisation(config)
        network = make(backbone)
    if source.file is not None:
        tensors, trained_with = tensors_for(network, source.file, config.aux_layer)
        network.load_state_dict(tensors, strict=False)
        if config.normalisation == "encoder":
            backbone.colours = trained_with or backbone.colours
        if trained_with is None and backbone.colours != IMAGENET_COLOURS:
            log.info(
                f"model.weights {source.file} does not say its colours: mean and deviation are those of "
                f"timm's {config.backbone}, {backbone.colours} (else set model.normalisation imagenet)"
            )
    position = getattr(backbone.model, "pos_embed", None)
    if config.freeze_position_embedding and isinstance(position, nn.Parameter):
        position.requires_grad_(False)
    if config.freeze == "encoder":
        backbone.freeze()
    return network


def normalisation(config: ModelConfig) -> Colours:
    """Mean and standard deviation of the colours in 0..1 that the configured encoder expects.

    Those of the architecture's usual weights where the configured ones are a file, which may say otherwise.
    """
    facts = facts_of_weights(config) if config.normalisation == "encoder" else None
    return (facts.mean, facts.std) if facts else IMAGENET_COLOURS


def facts_of_weights(config: ModelConfig) -> PretrainedCfg | None:
    """What timm says of the configured weights, of a file what it says of the architecture's usual ones."""
    if config.weights in ("", "none"):
        return None
    tag = "" if names_a_file(config.weights) else f".{config.weights}"
    with suppress(RuntimeError):  # a tag that timm does not have, which is refused elsewhere
        return get_pretrained_cfg(config.backbone + tag)
    return None


def _build_backbone(config: ModelConfig, tag: str) -> Backbone:
    """Create the configured backbone with timm's weights of a tag, or random ones if it is empty."""
    name, options = config.backbone, config.backbone_options
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"model.backbone {name!r} is no timm architecture; near: {', '.join(near)}")
    full_name = f"{name}.{tag}" if tag else name
    try:
        wrap, form = _kind_of(full_name, options)
        fetched = fetched_file(config) if tag else None
        if fetched is not None and fetched.is_file():
            form = {**form, "pretrained_cfg_overlay": {"file": str(fetched)}}
        model = timm.create_model(full_name, pretrained=bool(tag), **{**form, **options})
        return wrap(model, config.aux_layer)
    except CANNOT_CREATE as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"timm cannot create {full_name} with {options}: {reason}") from None


def _plain(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What timm makes of a name, without a head, on the meta device."""
    own = {key: value for key, value in options.items() if key != "out_indices"}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, **{"num_classes": 0, **own})


def _kind_of(name: str, options: Mapping[str, Any]) -> Kind:
    """What wraps a model of timm, and what it is created with, by the class that timm makes of it."""
    plain = _plain(name, options)
    for model, (wrap, form) in KINDS.items():
        if isinstance(plain, model):
            # An attention that pools has weights of its own, which no map reads.
            pool = {"global_pool": ""} if getattr(plain, "global_pool", "") == "map" else {}
            return wrap, {"num_classes": 0, **form, **pool}
    return ConvolutionalBackbone, {"features_only": True}


def check_maps(config: ModelConfig) -> None:
    """Refuse a network whose maps timm gives without the norm that its head expects."""
    try:
        plain = _plain(config.backbone, config.backbone_options)
    except CANNOT_CREATE:
        return  # which is refused where it is built
    norms = [getattr(plain, norm, nn.Identity()) for norm in LAST_NORMS]
    if not isinstance(plain, tuple(KINDS)) and any(list(norm.parameters()) for norm in norms):
        raise ValueError(
            f"model.backbone {config.backbone}: timm gives the maps of a {type(plain).__name__} without its "
            "final norm; take a ViT, DeiT, EVA, Swin or a CNN (DINO, CLIP, ConvNeXt and others)"
        )


def fetched_file(config: ModelConfig) -> Path | None:
    """Where the weights of a timm tag lie once they are fetched; None if other weights are asked for."""
    tag = parse_weight_source(config.weights).tag
    folder = Path(config.weights_folder)
    return folder / f"{config.backbone}.{tag}.safetensors" if tag and config.weights_folder else None


def fetch_weights(config: ModelConfig) -> None:
    """Put the weights of a timm tag into `weights_folder`, where every worker finds them.

    Workers often have no network, and hundreds of them would ask the same server. Raises `ConfigError` if the
    weights cannot be had.
    """
    file = fetched_file(config)
    if file is None or file.is_file():
        return
    full_name = file.stem
    log.info("fetching the weights %s into %s", full_name, file.parent)
    try:
        tensors = timm.create_model(full_name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.weights {config.weights}: timm cannot fetch {full_name} on this machine ({reason}); "
            f"start the run once where there is a network, copy {file} from there, or give a file"
        ) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        save_tensors(tensors, temporary)


def check_tag(name: str, tag: str) -> None:
    """Refuse a tag that timm has no weights for, naming those that there are."""
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        raise ValueError(
            f"model.weights {tag!r} is neither a file nor a timm tag of {name} (there are "
            f"{', '.join(tags) or 'none'}){nearest(tag, tags)}; give the path of a file, a tag, or none"
        )


def check_input_size(
    backbone: Backbone, option: str, side: int, scales: Sequence[float], *, training: bool
) -> None:
    """Refuse the value of an option if the backbone cannot take a square of that side at all scales.

    The training crop must be whole cells for every backbone: the losses meet on that grid. At other scales
    only a plain vision transformer needs whole patches. The error names the nearest sides that fit.
    """

    def unfit(side: int) -> int | None:
        sizes = ([side] if training else []) + ([] if backbone.any_size else [int(s * side) for s in scales])
        return next((size for size in sizes if size < 1 or size % backbone.stride), None)

    size = unfit(side)
    if size is None:
        return
    below = next((s for s in range(side - 1, 0, -1) if unfit(s) is None), None)
    above = next((s for s in range(side + 1, side + 16 * backbone.stride + 1) if unfit(s) is None), None)
    near = " or ".join(str(fit) for fit in (below, above) if fit)
    raise ValueError(
        f"{option} {side}: with the scales {', '.join(f'{s:g}' for s in scales)} the backbone meets an input "
        f"of {size} pixels, which its stride of {backbone.stride} does not divide; "
        + (f"choose {near}, or other scales" if near else "choose other scales")
    )


def check_forward(
    backbone: Backbone, option: str, side: int, scales: Sequence[float], *, dense: bool
) -> None:
    """Refuse the value of an option if a backbone on the meta device, where nothing is computed, fails on it.

    Some networks take one size only. `dense` asks for the maps of a segmenter.
    """
    for size in sorted({int(scale * side) for scale in scales}):
        images = torch.empty(1, 3, size, size, device="meta")
        try:
            with torch.no_grad():
                backbone.pyramid(images) if dense else backbone(images)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            if "meta tensor" not in reason:  # else it looks at numbers, which there are none of
                raise ValueError(
                    f"{option} {side}: model.backbone cannot take an input of {size} x {size} pixels "
                    f"({reason}); one of fixed size needs scales [1.0] and "
                    "model.backbone_options {img_size: SIDE}"
                ) from None
