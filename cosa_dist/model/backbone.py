"""timm backbones that give two maps: the main one and an auxiliary, shallower one.

A vision transformer gives the patch tokens of its last block after the final norm (main) and those after
block `aux_layer` without norm (auxiliary). A convolutional network gives its last stage and an earlier
one, brought to the last one's grid. Any input size that the patch divides works: position embeddings are
resized bicubically without antialiasing, as the released weights of this method expect.
"""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from cosa_dist.model.weights import WeightSource, load_backbone_weights


class TransformerBackbone(nn.Module):
    """A timm vision transformer as a pair of feature maps (source: released code)."""

    def __init__(self, model: VisionTransformer, aux_layer: int) -> None:
        super().__init__()
        depth = len(model.blocks)
        if not -depth <= aux_layer <= -2:
            raise ValueError(
                f"model.aux_layer {aux_layer} is not in -{depth}..-2 of a backbone of {depth} blocks"
            )
        self.model = model
        self.aux_index = depth + aux_layer
        self.channels = model.embed_dim
        self.aux_channels = model.embed_dim
        self.stride = model.patch_embed.patch_size[0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the main and the auxiliary map, each [B, D, H/p, W/p].

        Raises:
            ValueError: the patch does not divide the image's size.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"the backbone's patch of {self.stride} pixels does not divide an input of "
                f"{height} x {width}; choose sizes and scales that it divides"
            )
        grid = (height // self.stride, width // self.stride)
        tokens = self._embed(images, grid)
        auxiliary = tokens
        for index, block in enumerate(self.model.blocks):
            tokens = block(tokens)
            if index == self.aux_index:
                auxiliary = tokens
        return self._as_map(self.model.norm(tokens), grid), self._as_map(auxiliary, grid)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        model = self.model
        patches = model.patch_embed.norm(model.patch_embed.proj(images).flatten(2).transpose(1, 2))
        prefix = [
            token.expand(len(images), -1, -1)
            for token in (model.cls_token, model.reg_token)
            if token is not None
        ]
        position = self._position(grid)
        if position is not None and position.shape[1] == patches.shape[1]:
            return model.norm_pre(torch.cat([*prefix, patches + position], dim=1))
        tokens = torch.cat([*prefix, patches], dim=1)
        return model.norm_pre(tokens if position is None else tokens + position)

    def _position(self, grid: tuple[int, int]) -> Tensor | None:
        embedding = self.model.pos_embed
        if embedding is None or tuple(self.model.patch_embed.grid_size) == grid:
            return embedding
        extra = 0 if self.model.no_embed_class else self.model.num_prefix_tokens
        prefix, patches = embedding[:, :extra], embedding[:, extra:]
        old = self.model.patch_embed.grid_size
        square = patches.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square.float(), grid, mode="bicubic", align_corners=False)
        return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)

    def _as_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, self.model.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, *grid)


class ConvolutionalBackbone(nn.Module):
    """A timm convolutional network: last stage, and an earlier stage on the same grid (source: ours)."""

    def __init__(self, model: nn.Module, aux_layer: int) -> None:
        super().__init__()
        channels = model.feature_info.channels()  # type: ignore[union-attr, operator]
        if not -len(channels) <= aux_layer <= -2:
            raise ValueError(
                f"model.aux_layer {aux_layer} is not in -{len(channels)}..-2 of a backbone of "
                f"{len(channels)} stages"
            )
        self.model = model
        self.aux_layer = aux_layer
        self.channels = channels[-1]
        self.aux_channels = channels[aux_layer]
        self.stride = model.feature_info.reduction()[-1]  # type: ignore[union-attr, operator]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the main [B, D, h, w] and auxiliary map [B, D', h, w]."""
        stages = self.model(images)
        main = stages[-1]
        return main, F.adaptive_avg_pool2d(stages[self.aux_layer], main.shape[-2:])


def build_backbone(
    name: str, source: WeightSource, aux_layer: int, options: dict[str, Any]
) -> TransformerBackbone | ConvolutionalBackbone:
    """Create a backbone by its timm name with the given weights.

    Args:
        name: timm architecture without tag.
        source: where its weights come from.
        aux_layer: block or stage of the auxiliary map, counted from the end.
        options: extra arguments of `timm.create_model`.

    Raises:
        ValueError: unknown architecture, unsuitable one, or weights that do not fit.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"model.backbone {name!r} is no timm architecture; near: {', '.join(near)}")
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    full_name = f"{name}.{source.tag}" if source.tag else name
    arguments: dict[str, Any] = {"pretrained": bool(source.tag), **options}
    backbone: TransformerBackbone | ConvolutionalBackbone
    try:
        if family in ("vision_transformer", "deit"):
            model = timm.create_model(full_name, num_classes=0, global_pool="", **arguments)
            backbone = TransformerBackbone(cast(VisionTransformer, model), aux_layer)
        else:
            model = timm.create_model(full_name, features_only=True, **arguments)
            if getattr(model, "output_fmt", "NCHW") not in ("NCHW", None):
                raise ValueError(f"model.backbone {name!r} is neither a plain ViT nor a CNN")
            backbone = ConvolutionalBackbone(model, aux_layer)
    except (RuntimeError, TypeError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"timm cannot create {full_name} with {options}: {reason}") from None
    load_backbone_weights(backbone.model, source)
    return backbone
