"""A network as one graph that runs without this package: `torch.export` and ONNX, checked after writing.

The graph takes pictures already resized to a square of `evaluation.size`, as colours 0..255, and gives
segmentation logits at that size and image logits: of a run whose `evaluation.geometry` is `square` it is what
jobs/predict.py does with `--scales 1 --no-flip`, before it resizes to the picture's own size. Runs of other
geometries see pictures at other sizes. The batch is free, the size is fixed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.data.reading.views import normalise
from cosa_dist.inference.trained import TrainedModel
from cosa_dist.model.backbone import backbone_of
from cosa_dist.model.build import check_input_size

INPUT = "images"
OUTPUTS = ("segmentation", "logits")
TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
# Largest difference of logits, relative to the largest logit, between the graph and the network.
TOLERANCE = 1e-3
# Bytes of weights up to which an ONNX file holds them itself (the format's limit is 2 GiB).
LARGEST_SINGLE_FILE = 1.5e9


class ExportError(RuntimeError):
    """A network that could not be exported, or a graph that gives other numbers than the network."""


class PlainSegmenter(nn.Module):
    """A trained network with the normalisation before it and the enlargement to `size` after it."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Colours 0..255 `[B, 3, S, S]` float32 -> logits `[B, C + 1, S, S]` and image logits `[B, C]`."""
        output = self.network(normalise(images))
        segmentation = functional.interpolate(
            output.segmentation, size=(self.size, self.size), mode="bilinear", align_corners=False
        )
        return segmentation, output.logits


def graph_of(model: TrainedModel) -> PlainSegmenter:
    """The model's graph on the CPU, in evaluation mode, without parameters that ask for gradients."""
    size = model.config.evaluation.size
    check_input_size(backbone_of(model.network), "evaluation.size", size, [1.0], training=False)
    network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
    return PlainSegmenter(network, size).eval()


def example(size: int, batch: int) -> Tensor:
    """Some picture-like input `[B, 3, S, S]` float32, always the same."""
    noise = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
    return (noise * 255).round()


def _traced(graph: PlainSegmenter) -> torch.export.ExportedProgram:
    """The graph as `torch.export` sees it, for any number of pictures."""
    # Strict tracing follows `len(tensor)`; the other way would take the example's batch for a constant.
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(graph, (example(graph.size, 2),), dynamic_shapes=({0: batch},), strict=True)


def write_torch_export(model: TrainedModel, folder: Path) -> str:
    """Write `torch.export.save`'s file into `folder`, check it, and say so in a line."""
    graph, path = graph_of(model), folder / TORCH_FILE
    try:
        torch.export.save(_traced(graph), path)
        loaded = torch.export.load(path).module()
    except Exception as error:  # torch.export raises many kinds
        raise _failed("torch_export", error) from error
    difference = checked(graph, lambda images: tuple(loaded(images)), "torch_export")
    return f"{TORCH_FILE}, differs from the network by at most {difference:.1e}"


def write_onnx(model: TrainedModel, folder: Path) -> str:
    """Write an ONNX file into `folder`, check it in onnxruntime, and say so in a line."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"onnx needs the extra packages: pip install -e '.[export]' ({error})") from None
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    graph, path = graph_of(model), folder / ONNX_FILE
    weights = sum(parameter.numel() * parameter.element_size() for parameter in graph.parameters())
    try:
        torch.onnx.export(
            _traced(graph),
            (),
            str(path),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            external_data=weights > LARGEST_SINGLE_FILE,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # exporter and runtime raise many kinds
        raise _failed("onnx", error) from error

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), {INPUT: images.numpy()})]

    difference = checked(graph, run, "onnx")
    return f"{ONNX_FILE}, in onnxruntime it differs from the network by at most {difference:.1e}"


def checked(graph: PlainSegmenter, run: Callable[[Tensor], Sequence[Tensor]], what: str) -> float:
    """The written graph's largest relative difference to the network; ExportError above `TOLERANCE`."""
    worst = 0.0
    for batch in (1, 3):
        images = example(graph.size, batch)
        with torch.no_grad():
            wanted = graph(images)
        for name, own, given in zip(OUTPUTS, wanted, run(images), strict=True):
            difference = float((own - given).abs().max() / own.abs().max().clamp(min=1e-6))
            if own.shape != given.shape or not difference <= TOLERANCE:
                raise ExportError(
                    f"{what}: {name} differs from the network by {difference:.2g} of its largest"
                )
            worst = max(worst, difference)
    return worst


def _failed(what: str, error: Exception) -> ExportError:
    return ExportError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
