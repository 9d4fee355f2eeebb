"""Pictures of what a run has learned: image, both CAMs, pseudo-labels, their weights, prediction and truth.

One PNG per image, made without a display. CAMs show the strongest activation over the image's labels; classes
come in the data set's colours, with a legend of those that occur.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.assignment.inference import multi_scale
from cosa_dist.assignment.pseudo_labels import Assignment, make_assignment
from cosa_dist.assignment.threshold import Thresholds
from cosa_dist.config.method import AssignmentConfig
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.evaluator import evaluation_mode, has_cams
from cosa_dist.evaluation.protocols import multi_scale_forward, resize_map, square_image, strongest_activation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORE_COLOUR = (224, 224, 192)
PANEL_INCHES = 2.4


@dataclass(frozen=True)
class Labeller:
    """An assignment network and how it labels."""

    network: nn.Module  # in evaluation mode while it labels
    stride: int  # pixels of the image to one of the CAM's grid
    thresholds: Thresholds  # of both CAMs
    config: AssignmentConfig
    """of the pass and the pseudo-labels; `reliability` says whether the losses use the weights"""


@dataclass(frozen=True)
class ImageLabels:
    """CAMs and pseudo-labels of one image, `[H, W]` each."""

    cam: Tensor  # float32 strongest activation of a tagged class in 0..1
    aux_cam: Tensor  # the same of the auxiliary CAM
    cam_label: Tensor  # int64 CAM pseudo-label (CPL): 0 background, 1..C, 255 ignore
    segmentation_label: Tensor
    """int64 most probable class of the segmentation pseudo-label (SPL): 0 background, 1..C"""
    weight: Tensor
    """float32 reliability of the CAM pseudo-label, mean 1 over its foreground and over its background"""


@dataclass(frozen=True)
class Panel:
    """One map `[H, W]` of a picture: activations or weights as heat, or classes in their colours."""

    title: str
    values: Tensor
    heat_up_to: float = 0.0  # value of the hottest colour; 0: the map holds classes


def label_image(
    labeller: Labeller,
    sample: EvalSample,
    size: int,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ImageLabels:
    """What the assignment network on `device` would tell the online network about a whole tagged image.

    The multi-scale pass, thresholds and pseudo-labels of training, but on an evaluation's square of `size`,
    and brought back to the image's size; the network runs in the context that `precision` makes. Reliability
    weights are always made, so that a picture shows where the labels are uncertain even if the losses do not
    use them.
    """
    image, tags = sample.image.to(device), sample.labels[None].to(device)
    with precision():
        output = multi_scale(
            labeller.network,
            square_image(image, size)[None],
            labeller.config.scales,
            flip=labeller.config.flip,
            aux_cam_last_scale_only=labeller.config.aux_cam_last_scale_only,
            labels=tags,
        )
    grid = size // labeller.stride
    whole = torch.tensor([[0, size, 0, size]], device=device)
    config = labeller.config.model_copy(update={"reliability": True})
    assignment = make_assignment(output, tags, whole, labeller.thresholds, (grid, grid), config)
    shape = (image.shape[-2], image.shape[-1])
    # The foreground's probabilities leave the rest to the background.
    foreground = assignment.segmentation_pseudo_label
    probable = torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1).argmax(1)
    return ImageLabels(
        cam=resize_map(output.cam[0].amax(0, keepdim=True), shape)[0],
        aux_cam=resize_map(output.aux_cam[0].amax(0, keepdim=True), shape)[0],
        cam_label=_nearest(assignment.cam_pseudo_label, shape).long(),
        segmentation_label=_nearest(probable, shape).long(),
        weight=_nearest(_normalised_weight(assignment), shape),
    )


def _normalised_weight(assignment: Assignment) -> Tensor:
    """Weights `[B, H, W]` with mean 1 over the foreground and over the background, as the losses use them."""
    label, weight = assignment.cam_pseudo_label, assignment.reliability
    assert weight is not None
    result = torch.zeros_like(weight)
    for part in ((label > 0) & (weight > 0), label == 0):
        result[part] = weight[part] / weight[part].mean()
    return result


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """One image's plane `[1, h, w]`, resized to `size` by the nearest pixel: `[H, W]` float32."""
    return functional.interpolate(maps[None].float(), size=size, mode="nearest-exact")[0, 0]


def save_pictures(
    network: nn.Module,
    samples: Iterable[EvalSample],
    folder: Path | str,
    *,
    class_names: Sequence[str],
    palette: ArrayLike,
    config: EvaluationConfig,
    labeller: Labeller | None = None,
    aux_cam_last_scale_only: bool = False,
    device: torch.device | str = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    limit: int = 8,
) -> list[Path]:
    """Draw the first `limit` samples with what a network on `device` predicts; see `save_panels`.

    The CAMs and pseudo-labels are the labeller's; without one, the CAMs are the predicting network's and
    there are no pseudo-labels. The networks run in the context that `precision` makes, such as autocast;
    training modes are put back afterwards.
    """

    def panels(sample: EvalSample) -> list[Panel]:
        size = (sample.image.shape[-2], sample.image.shape[-1])
        image, tags = sample.image.to(device), sample.labels[None].to(device)
        with precision():
            ((output, _),) = multi_scale_forward(network, [image], config, tags, aux_cam_last_scale_only)
        drawn: list[Panel] = []
        if labeller is not None:
            found = label_image(labeller, sample, config.size, torch.device(device), precision)
            used = "" if labeller.config.reliability else " (not used)"
            drawn = [
                Panel("CAM", found.cam, 1.0),
                Panel("auxiliary CAM", found.aux_cam, 1.0),
                Panel("CAM pseudo-label", found.cam_label),
                Panel("segmentation pseudo-label", found.segmentation_label),
                Panel(f"weight, 0 to 3{used}", found.weight, 3.0),
            ]
        elif has_cams(network):
            for title, cam in (("CAM", output.cam), ("auxiliary CAM", output.aux_cam)):
                drawn.append(Panel(title, strongest_activation(cam[0], tags[0] > 0.5, size)[0], 1.0))
        drawn.append(Panel("prediction (unfiltered)", resize_map(output.segmentation[0], size).argmax(0)))
        return drawn if sample.mask is None else [*drawn, Panel("truth", sample.mask)]

    with evaluation_mode([network, *([labeller.network] if labeller else [])]), torch.inference_mode():
        chosen = ((sample, panels(sample)) for sample in islice(samples, limit))
        return save_panels(chosen, folder, class_names=class_names, palette=palette)


def save_panels(
    drawn: Iterable[tuple[EvalSample, Sequence[Panel]]],
    folder: Path | str,
    *,
    class_names: Sequence[str],
    palette: ArrayLike,
) -> list[Path]:
    """Draw samples beside maps of them, one PNG each; the files come in the samples' order.

    The palette is `[K or more, 3]` colours in 0..255, background first; ValueError for a shorter one.
    """
    names = ("background", *class_names)
    colours = np.asarray(palette, dtype=np.uint8)
    if colours.ndim != 2 or colours.shape[0] < len(names) or colours.shape[1] != 3:
        raise ValueError(
            f"the palette has shape {colours.shape}; {len(names)} classes (background included) "
            f"need at least [{len(names)}, 3]"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for number, (sample, panels) in enumerate(drawn):
        figure = _draw(sample, panels, names, colours)
        # The id comes from the data set: as a file name it must not lead out of the folder.
        files.append(folder / f"{number:03d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', sample.id)}.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _draw(
    sample: EvalSample, panels: Sequence[Panel], names: Sequence[str], colours: NDArray[np.uint8]
) -> Figure:
    """Image and maps in one or two rows, with tags above and a legend below."""
    height, width = sample.image.shape[-2:]
    rows = 1 if len(panels) <= 4 else 2
    columns = -(-(len(panels) + 1) // rows)
    inches = (columns * PANEL_INCHES, rows * PANEL_INCHES * min(height / width, 2.0) + 0.9)
    # Only here: the workers import this module before their first step, and draw after the last one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns).ravel()
    for place in axes:
        place.set_axis_off()
    image = sample.image.permute(1, 2, 0).cpu().numpy()
    # What is no class is light yellow.
    table = np.full((256, 3), IGNORE_COLOUR, dtype=np.uint8)
    table[: min(len(colours), IGNORE)] = colours[:IGNORE]
    axes[0].set_title("image", fontsize=9)
    axes[0].imshow(image, interpolation="nearest")
    occurring: set[int] = set()
    for place, panel in zip(axes[1:], panels, strict=False):
        place.set_title(panel.title, fontsize=9)
        if panel.heat_up_to:
            values = panel.values.float().cpu().numpy()
            place.imshow(image, interpolation="nearest")
            place.imshow(values, cmap="turbo", vmin=0, vmax=panel.heat_up_to, alpha=0.6)
        else:
            place.imshow(table[panel.values.long().cpu().numpy()], interpolation="nearest")
            occurring |= set(panel.values.unique().tolist())
    legend = {index: name for index, name in enumerate(names) if index in occurring}
    legend |= {IGNORE: "ignore"} if IGNORE in occurring else {}
    handles = [
        Patch(facecolor=tuple(table[index] / 255), edgecolor="black", linewidth=0.5, label=name)
        for index, name in legend.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    tags = [name for name, on in zip(names[1:], sample.labels.tolist(), strict=True) if on > 0.5]
    figure.suptitle(f"{sample.id}: {', '.join(tags) or 'no label'}", fontsize=10)
    return figure
