"""Convolutional networks of timm (ResNet, ConvNeXt and others) as a main and an auxiliary map.

Main: the last stage. Auxiliary: an earlier stage, averaged onto the last one's grid. Any input size works.
Batch norm counts as weights of the online network: it learns from the batch and the assignment network
copies its statistics.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cosa_dist.model.backbone import Backbone, auxiliary_index, enlarged, four_channels


class ConvolutionalBackbone(Backbone):
    """A timm model of `features_only=True`: its last stage and an earlier one (source: ours)."""

    has_blocks = False

    def __init__(self, model: nn.Module, aux_layer: int) -> None:
        super().__init__()
        channels = model.feature_info.channels()  # type: ignore[union-attr, operator]
        strides = model.feature_info.reduction()  # type: ignore[union-attr, operator]
        if len(set(strides)) == 1:
            raise ValueError("model.backbone: neither a ViT, DeiT, EVA or Swin, nor a network of stages")
        self.aux_index = auxiliary_index(aux_layer, len(channels), "stages")
        self.model = model
        self.channels = channels[-1]
        self.aux_channels = channels[self.aux_index]
        self.stride = strides[-1]
        self.channels_last = getattr(model, "output_fmt", None) == "NHWC"
        self.pyramid_channels = four_channels(channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to both maps; h and w are H and W over the stride, rounded up."""
        stages = self._stages(images)
        main = stages[-1]
        return main, F.adaptive_avg_pool2d(stages[self.aux_index], (main.shape[-2], main.shape[-1]))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The last four stages."""
        return self._stages(images)[-4:]

    def _stages(self, images: Tensor) -> list[Tensor]:
        stages = self.model(enlarged(images, self.stride))
        return [each.permute(0, 3, 1, 2).contiguous() for each in stages] if self.channels_last else stages

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors of a timm file the names of the feature extractor.

        timm's extractor joins the names of a stage (`stages.0.x` becomes `stages_0.x`) or puts `model.` in
        front; with the joints made alike, both forms are the same.
        """
        own = {name.removeprefix("model.").replace(".", "_"): name for name in self.model.state_dict()}
        return {own.get(name.replace(".", "_"), name): tensor for name, tensor in state.items()}
