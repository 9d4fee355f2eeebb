"""Plain vision transformers of timm (ViT, DeiT, EVA and their kin) as a main and an auxiliary map.

Main: the patch tokens of the last block after the final norm. Auxiliary: those after block `aux_layer`,
without norm. Class, register and distillation tokens take part and are left out of the maps. Every input
size that the patch divides works; rotary embeddings (EVA-02, DINOv3) are made for each grid. Attention runs
through PyTorch's fused kernel (timm's default).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from cosa_dist.model.backbone import Backbone, auxiliary_index, average_pool, bicubic, four_channels

Grid = tuple[int, int]


class TransformerBackbone(Backbone):
    """A timm vision transformer of `num_classes=0` as a pair of feature maps (source: released code)."""

    any_size = False
    model: VisionTransformer | Eva

    def __init__(self, model: VisionTransformer | Eva, aux_layer: int) -> None:
        super().__init__()
        if type(model.patch_embed) is not PatchEmbed:
            stem = type(model.patch_embed).__name__
            raise ValueError(f"model.backbone: a transformer behind a {stem} has no plain patches")
        patch = model.patch_embed.patch_size
        if patch[0] != patch[1]:
            raise ValueError(f"the patches of the backbone must be square, not {patch[0]} x {patch[1]}")
        if not isinstance(model.patch_drop, nn.Identity | None):
            raise ValueError("model.backbone_options: patch_drop_rate leaves holes in the map; leave it out")
        if isinstance(model.norm, nn.Identity):
            # Models that pool before their norm; on maps it is the same norm.
            model.norm, model.fc_norm = model.fc_norm, nn.Identity()
        self.aux_index = auxiliary_index(aux_layer, len(model.blocks), "blocks")
        self.model = model
        self.channels = self.aux_channels = model.embed_dim
        self.pyramid_channels = four_channels([model.embed_dim] * 4)
        self.stride = patch[0]
        # Entries of the position embedding that belong to no patch.
        self.position_prefix = 0 if model.no_embed_class else model.num_prefix_tokens

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to both maps [B, D, H/p, W/p]; the patch must divide the image's size."""
        auxiliary, main = self._after_blocks(images, [self.aux_index, len(self.model.blocks) - 1])
        return main, auxiliary

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps after each quarter of the blocks, enlarged and shrunk to the four strides (BEiT's way)."""
        blocks = len(self.model.blocks)
        maps = self._after_blocks(images, [-(-blocks * part // 4) - 1 for part in (1, 2, 3, 4)])
        height, width = images.shape[-2:]
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
        return [_resized(each, size) for each, size in zip(maps, sizes, strict=True)]

    def _after_blocks(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Maps [B, D, h, w] after the wanted blocks (indices from the start), the last one normed."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"the backbone's patch of {self.stride} pixels does not divide an input of "
                f"{height} x {width}; choose sizes and scales that it divides"
            )
        grid = (height // self.stride, width // self.stride)
        tokens = self._embed(images, grid)
        kept: dict[int, Tensor] = {}
        for index, (block, rotary) in enumerate(zip(self.model.blocks, self._rotary(grid), strict=True)):
            tokens = self.run_block(block, tokens, *rotary)
            if index in wanted:
                kept[index] = tokens
        found = [kept[index] for index in wanted]
        found[-1] = self.model.norm(found[-1])
        patches = [each[:, self.model.num_prefix_tokens :].transpose(1, 2) for each in found]
        return [each.reshape(len(images), -1, *grid) for each in patches]

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Call the final norm `norm`, and resize a position embedding of another (square) grid."""
        pooled = {key: value for key, value in state.items() if key.startswith("fc_norm.")}
        state = {key: value for key, value in state.items() if key not in pooled}
        if "norm.weight" not in state:
            state |= {key.removeprefix("fc_"): value for key, value in pooled.items()}
        stored, own = state.get("pos_embed"), self.model.pos_embed
        if stored is None or own is None or stored.ndim != 3 or stored.shape[-1] != own.shape[-1]:
            return state
        side = math.isqrt(max(stored.shape[1] - self.position_prefix, 0))
        if side == 0 or side**2 != stored.shape[1] - self.position_prefix:
            return state
        grid = tuple(self.model.patch_embed.grid_size)
        resized = resize_position_embedding(stored, self.position_prefix, (side, side), grid)
        return {**state, "pos_embed": resized}

    def _rotary(self, grid: Grid) -> list[tuple[Tensor, ...]]:
        """What each block gets beside its tokens: the rotary embedding of the grid, if the model has one."""
        rope = getattr(self.model, "rope", None)
        if rope is None:
            return [()] * len(self.model.blocks)
        embedding = rope.get_embed(shape=grid)
        # `mixed` embeddings are learned, one for each block.
        each = embedding if self.model.rope_mixed else [embedding] * len(self.model.blocks)
        return [(one,) for one in each]

    def _embed(self, images: Tensor, grid: Grid) -> Tensor:
        model = self.model
        patches = model.patch_embed.norm(model.patch_embed.proj(images).flatten(2).transpose(1, 2))
        # DeiT's distillation token is no attribute of the plain model; timm puts it after the class token.
        extra = (model.cls_token, getattr(model, "dist_token", None), model.reg_token)
        prefix = [token.expand(len(images), -1, -1) for token in extra if token is not None]
        position: Tensor | None = model.pos_embed
        if position is not None:
            old = tuple(model.patch_embed.grid_size)
            position = resize_position_embedding(position, self.position_prefix, old, grid)
        if position is not None and model.no_embed_class:
            patches, position = patches + position, None
        tokens = torch.cat([*prefix, patches], dim=1)
        return model.norm_pre(model.pos_drop(tokens if position is None else tokens + position))


def resize_position_embedding(embedding: Tensor, prefix_tokens: int, old: Grid, new: Grid) -> Tensor:
    """Resize position embeddings [1, prefix_tokens + h * w, D] from the grid `old` (h, w) to `new`.

    Bicubic, without antialiasing and without aligned corners (released code): antialiasing, timm's default,
    moves features by up to 1e-2, and masks with them.
    """
    if old == new:
        return embedding
    prefix, patches = embedding[:, :prefix_tokens], embedding[:, prefix_tokens:]
    table = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = bicubic(table.float(), new)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def _resized(maps: Tensor, size: Grid) -> Tensor:
    """Average [B, D, h, w] onto a coarser grid, or enlarge it bilinearly to a finer one."""
    if size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        return average_pool(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
