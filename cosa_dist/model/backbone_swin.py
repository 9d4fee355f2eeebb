"""Swin transformers of timm as a main and an auxiliary map, for inputs of any size.

Main: the last stage after its norm. Auxiliary: an earlier stage, without norm, averaged onto the last one's
grid. The weights' window size is kept whatever the input's size. ImageNet-22k tags of timm, the usual start
of dense prediction: `ms_in22k` (and, tuned on ImageNet-1k after that, `ms_in22k_ft_in1k`) of
`swin_tiny_patch4_window7_224`, `swin_small_patch4_window7_224`, `swin_base_patch4_window7_224`,
`swin_base_patch4_window12_384`, `swin_large_patch4_window7_224` and `swin_large_patch4_window12_384`.
timm's stochastic depth of 0.1 stays on in training; `model.backbone_options: {drop_path_rate: 0}` ends it.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    checkpoint_filter_fn,
)
from torch import Tensor

from cosa_dist.model.backbone_base import Backbone, auxiliary_index, enlarged, four_channels
from cosa_dist.model.windows import Pair, Windows, lay_windows


class SwinBackbone(Backbone):
    """A timm Swin transformer as a pair of feature maps (source: ours)."""

    model: SwinTransformer

    def __init__(self, model: SwinTransformer, aux_layer: int) -> None:
        """Wrap a model made with `num_classes=0`, `strict_img_size=False` and `always_partition=True`.

        Raises:
            ValueError: `aux_layer` is not there.
        """
        super().__init__()
        self.aux_index = auxiliary_index(aux_layer, len(model.layers), "stages")
        self.model = model
        self.channels = model.num_features
        self.aux_channels = model.feature_info[self.aux_index]["num_chs"]
        self.stride = model.feature_info[-1]["reduction"]
        self.pyramid_channels = four_channels([info["num_chs"] for info in model.feature_info])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the main [B, D, h, w] and auxiliary map [B, D', h, w].

        h and w are H and W over the stride, rounded up; between two sizes the input is enlarged.
        """
        stages = self.pyramid(images)
        main = stages[-1]
        return main, F.adaptive_avg_pool2d(stages[self.aux_index], (main.shape[-2], main.shape[-1]))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The output of each stage, the last one after its norm."""
        tokens = self.model.patch_embed(enlarged(images, self.stride))
        stages = []
        for stage in self.model.layers:
            tokens = run_stage(cast(SwinTransformerStage, stage), tokens)
            stages.append(tokens)
        stages[-1] = self.model.norm(tokens)
        return [stage.permute(0, 3, 1, 2).contiguous() for stage in stages]

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the authors' original files and resize position tables of other windows, as timm does."""
        return checkpoint_filter_fn(state, self.model)


def run_stage(stage: SwinTransformerStage, tokens: Tensor) -> Tensor:
    """Run a stage on tokens [B, h, w, D]; the windows of its blocks are planned once."""
    tokens = stage.downsample(tokens)
    grid: Pair = (tokens.shape[1], tokens.shape[2])
    blocks = [cast(SwinTransformerBlock, block) for block in stage.blocks]
    window = blocks[0].window_size
    plain, shifted = (lay_windows(grid, window, choice, tokens.device) for choice in (False, True))
    for index, block in enumerate(blocks):
        tokens = run_block(block, tokens, shifted if index % 2 else plain)
    return tokens


def run_block(block: SwinTransformerBlock, tokens: Tensor, windows: Windows) -> Tensor:
    """Run a block on tokens [B, h, w, D]: attention within windows, then the perceptron."""
    seen = windows.join(block.attn(windows.split(block.norm1(tokens)), windows.mask))
    tokens = tokens + block.drop_path1(seen)
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
