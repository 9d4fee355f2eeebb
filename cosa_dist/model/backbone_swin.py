"""Swin transformers of timm (both versions) as a main and an auxiliary map, for inputs of any size.

Main: the last stage after its norm. Auxiliary: an earlier stage, without norm, averaged onto the last one's
grid. The weights' window size is kept whatever the input's size; timm's stochastic depth of 0.1 stays on in
training (`model.backbone_options: {drop_path_rate: 0}` ends it). A grid that the window does not divide is
padded first and shifted then, and a mask keeps padding, and tokens that only the shift brought together, from
being seen. (timm shifts first: its mask is then off, and tokens of opposite borders see each other.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from timm.models import swin_transformer, swin_transformer_v2
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    window_partition,
    window_reverse,
)
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor

from cosa_dist.model.backbone import Backbone, auxiliary_index, average_pool, enlarged, four_channels

Pair = tuple[int, int]
AnyBlock = SwinTransformerBlock | SwinTransformerV2Block


class SwinBackbone(Backbone):
    """A timm Swin transformer as a pair of feature maps (source: ours)."""

    model: SwinTransformer | SwinTransformerV2

    def __init__(self, model: SwinTransformer | SwinTransformerV2, aux_layer: int) -> None:
        super().__init__()
        self.aux_index = auxiliary_index(aux_layer, len(model.layers), "stages")
        self.model = model
        self.channels = model.num_features
        self.aux_channels = model.feature_info[self.aux_index]["num_chs"]
        self.stride = model.feature_info[-1]["reduction"]
        self.pyramid_channels = four_channels([info["num_chs"] for info in model.feature_info])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to both maps; h and w are H and W over the stride, rounded up."""
        stages = self.pyramid(images)
        main = stages[-1]
        return main, average_pool(stages[self.aux_index], (main.shape[-2], main.shape[-1]))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The output of each stage, the last one after its norm."""
        tokens = self.model.patch_embed(enlarged(images, self.stride))
        stages = []
        for stage in self.model.layers:
            tokens = self._run_stage(cast(SwinTransformerStage, stage), tokens)
            stages.append(tokens)
        stages[-1] = self.model.norm(tokens)
        return [stage.permute(0, 3, 1, 2).contiguous() for stage in stages]

    def _run_stage(self, stage: SwinTransformerStage, tokens: Tensor) -> Tensor:
        """Run a stage on tokens [B, h, w, D]; the windows of its blocks are planned once."""
        tokens = stage.downsample(tokens)
        grid: Pair = (tokens.shape[1], tokens.shape[2])
        blocks = [cast(AnyBlock, block) for block in stage.blocks]
        window = blocks[0].window_size
        # Fake tensors, and those of a graph that is being traced, must not be kept.
        real = type(tokens) is Tensor and not torch.compiler.is_compiling()
        plan = kept_windows if real else plan_windows
        plain, shifted = (plan(grid, window, choice, tokens.device) for choice in (False, True))
        for index, block in enumerate(blocks):
            tokens = self.run_block(run_swin_block, block, tokens, shifted if index % 2 else plain)
        return tokens

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the authors' original files and resize position tables of other windows, as timm does."""
        second = isinstance(self.model, SwinTransformerV2)
        return (swin_transformer_v2 if second else swin_transformer).checkpoint_filter_fn(state, self.model)


def run_swin_block(block: AnyBlock, tokens: Tensor, windows: Windows) -> Tensor:
    """Run a block on tokens [B, h, w, D]: attention within windows, then the perceptron.

    Norms come before them, in the second version after them.
    """
    if isinstance(block, SwinTransformerV2Block):
        seen = windows.join(block.attn(windows.split(tokens), windows.mask))
        tokens = tokens + block.drop_path1(block.norm1(seen))
        return tokens + block.drop_path2(block.norm2(block.mlp(tokens)))
    seen = windows.join(block.attn(windows.split(block.norm1(tokens)), windows.mask))
    tokens = tokens + block.drop_path1(seen)
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


@dataclass(frozen=True)
class Windows:
    """How one grid of tokens is cut into windows of N tokens."""

    grid: Pair  # h, w in tokens
    window: Pair  # size of a window in tokens
    shift: Pair  # how far the windows are shifted, in tokens
    padded: Pair  # the grid with padding at its bottom and right
    mask: Tensor | None  # [windows, N, N] additive: 0 where a token may see another one, -inf else

    def split(self, tokens: Tensor) -> Tensor:
        """Cut tokens [B, h, w, D] into windows [B * windows, N, D]."""
        extra = (self.padded[0] - self.grid[0], self.padded[1] - self.grid[1])
        tokens = F.pad(tokens, (0, 0, 0, extra[1], 0, extra[0])) if any(extra) else tokens
        if any(self.shift):
            tokens = torch.roll(tokens, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        return window_partition(tokens.contiguous(), self.window).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """Put windows [B * windows, N, D] back together: [B, h, w, D]."""
        windows = windows.unflatten(1, self.window)
        tokens = window_reverse(windows, self.window, *self.padded)
        if any(self.shift):
            tokens = torch.roll(tokens, self.shift, dims=(1, 2))
        return tokens[:, : self.grid[0], : self.grid[1]]


def plan_windows(grid: Pair, window: Pair, shifted: bool, device: torch.device) -> Windows:
    """Plan a grid's windows, perhaps shifted by half a window; a side of one window is not (Swin paper)."""
    height, width = (-(-side // size) * size for side, size in zip(grid, window, strict=True))
    down, right = (
        size // 2 if shifted and side > size else 0 for side, size in zip(grid, window, strict=True)
    )
    mask = None
    if down or right or (height, width) != grid:
        rows = _regions(grid[0], height, down, device)
        columns = _regions(grid[1], width, right, device)
        regions = (3 * rows[:, None] + columns)[None, :, :, None]
        of_window = window_partition(regions, window).flatten(1)
        apart = of_window[:, None, :] != of_window[:, :, None]
        mask = torch.zeros(apart.shape, device=device).masked_fill(apart, float("-inf"))
    return Windows(grid, window, (down, right), (height, width), mask)


@lru_cache(maxsize=64)
def kept_windows(grid: Pair, window: Pair, shifted: bool, device: torch.device) -> Windows:
    """`plan_windows`, once for each of the few grids of a run: some 150 small operations a pass."""
    # Evaluation asks in inference mode, and training saves the mask for its backward pass.
    with torch.inference_mode(False):
        return plan_windows(grid, window, shifted, device)


def _regions(side: int, padded: int, shift: int, device: torch.device) -> Tensor:
    """Region [padded] of each shifted row: 0 in its place, 1 brought round by the shift, 2 padding."""
    position = torch.arange(padded, device=device)
    region = (position >= padded - shift).long() if shift else torch.zeros_like(position)
    return region.masked_fill((position + shift) % padded >= side, 2)
