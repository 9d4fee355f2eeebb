"""Create a backbone by its timm name: a plain vision transformer, a Swin, or a convolutional network.

Each gives a main and a shallower auxiliary map on one grid (`backbone_base`). Attention runs through
PyTorch's fused kernel where that is the faster one: always in plain vision transformers (timm's default).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
from timm.models import VisionTransformer
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from cosa_dist.config.errors import nearest
from cosa_dist.model.backbone_base import Backbone
from cosa_dist.model.backbone_convolutional import ConvolutionalBackbone
from cosa_dist.model.backbone_swin import SwinBackbone
from cosa_dist.model.backbone_transformer import TransformerBackbone

KINDS = {"vision_transformer": "transformer", "deit": "transformer", "swin_transformer": "swin"}
SWIN_FOR_ANY_SIZE = {"strict_img_size": False, "always_partition": True}


def build_backbone(name: str, tag: str, aux_layer: int, options: dict[str, Any]) -> Backbone:
    """Create a backbone by its timm name.

    Args:
        name: timm architecture without tag.
        tag: timm tag of its pretrained weights; empty for random ones.
        aux_layer: block or stage of the auxiliary map, counted from the end.
        options: extra arguments of `timm.create_model`.

    Raises:
        ValueError: unknown architecture or tag, or an unsuitable one.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"model.backbone {name!r} is no timm architecture; near: {', '.join(near)}")
    kind = KINDS.get(timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1], "convolutional")
    full_name = f"{name}.{tag}" if tag else name
    try:
        model = _create(kind, full_name, bool(tag), options)
        if kind == "transformer":
            return TransformerBackbone(cast(VisionTransformer, model), aux_layer)
        if kind == "swin":
            return SwinBackbone(cast(SwinTransformer, model), aux_layer)
        return ConvolutionalBackbone(model, aux_layer)
    except (RuntimeError, TypeError, OSError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"timm cannot create {full_name} with {options}: {reason}") from None


def _create(kind: str, full_name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Create the timm model in the form that this kind of backbone wraps."""
    if kind == "convolutional":
        return timm.create_model(full_name, pretrained=pretrained, features_only=True, **options)
    arguments: dict[str, Any] = {"num_classes": 0, **options}
    if kind == "swin":
        arguments = {**SWIN_FOR_ANY_SIZE, **arguments}
    if "distilled" not in full_name:  # those read their class tokens and refuse another pooling
        arguments = {"global_pool": "", **arguments}
    return timm.create_model(full_name, pretrained=pretrained, **arguments)


def check_tag(name: str, tag: str) -> None:
    """Refuse a tag that timm has no weights for.

    Raises:
        ValueError: naming the tags that there are.
    """
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        raise ValueError(
            f"model.weights {tag!r} is neither a file nor a timm tag of {name} (there are "
            f"{', '.join(tags) or 'none'}){nearest(tag, tags)}; give the path of a file, a tag, or none"
        )


def check_input_size(
    backbone: Backbone, option: str, side: int, scales: Sequence[float], *, training: bool
) -> None:
    """Refuse a square input that the backbone cannot see at all scales; to be called before a run starts.

    The training crop itself must be whole cells for every backbone: the losses meet on that grid. At the
    other scales only a plain vision transformer needs whole patches.

    Args:
        backbone: the network's backbone.
        option: name of the option that sets the side, for the message.
        side: side of the input in pixels.
        scales: relative sizes; an input has `int(scale * side)` pixels.
        training: whether this is the training crop.

    Raises:
        ValueError: naming the option, the size that does not fit, and the nearest that do.
    """
    if _unfit(backbone, side, scales, training) is None:
        return
    below, above = (
        next((s for s in candidates if _unfit(backbone, s, scales, training) is None), None)
        for candidates in (range(side - 1, 0, -1), range(side + 1, side + 16 * backbone.stride + 1))
    )
    near = " or ".join(str(size) for size in (below, above) if size)
    size = _unfit(backbone, side, scales, training)
    raise ValueError(
        f"{option} {side}: with the scales {', '.join(f'{s:g}' for s in scales)} the backbone meets an input "
        f"of {size} pixels, which its stride of {backbone.stride} does not divide; "
        + (f"choose {near}, or other scales" if near else "choose other scales")
    )


def _unfit(backbone: Backbone, side: int, scales: Sequence[float], training: bool) -> int | None:
    """The first input size that does not fit, or None."""
    sizes = ([side] if training else []) + ([] if backbone.any_size else [int(s * side) for s in scales])
    return next((size for size in sizes if size < 1 or size % backbone.stride), None)
