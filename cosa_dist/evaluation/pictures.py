"""Pictures of what a network sees: image, CAM, auxiliary CAM, prediction and truth side by side.

One PNG per image, made without a display. The CAMs show the strongest activation over the image's
labels; the prediction is `unfiltered`, in the data set's class colours, with a legend of the
classes that occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.evaluator import evaluation_mode, resize_map, see, square_image
from cosa_dist.evaluation.protocols import (
    EvaluationSettings,
    kept_classes,
    predict,
    strongest_activation,
)

if TYPE_CHECKING:
    from cosa_dist.data.loader import EvalSample

IGNORE_COLOUR = (224, 224, 192)
PANEL_INCHES = 2.4


def save_pictures(
    network: nn.Module,
    samples: Iterable[EvalSample],
    folder: Path | str,
    *,
    class_names: Sequence[str],
    palette: ArrayLike,
    settings: EvaluationSettings | None = None,
    device: torch.device | str = "cpu",
    limit: int = 8,
) -> list[Path]:
    """Draw the first `limit` samples, one PNG each.

    Args:
        network: network on `device`; its training mode is put back afterwards.
        samples: images with labels; a mask is not needed.
        folder: where the files go; made if it is not there.
        class_names: the C foreground classes.
        palette: `[K or more, 3]` colours 0..255, background first.
        settings: scales, flip and size of the multi-scale pass.
        device: where the network is.
        limit: largest number of pictures.

    Returns:
        The files in the samples' order.

    Raises:
        ValueError: if the palette has fewer than K colours.
    """
    names = ("background", *class_names)
    colours = np.asarray(palette, dtype=np.uint8)
    if colours.ndim != 2 or colours.shape[0] < len(names) or colours.shape[1] != 3:
        raise ValueError(
            f"the palette has shape {colours.shape}; {len(names)} classes (background included) "
            f"need at least [{len(names)}, 3]"
        )
    settings = settings or EvaluationSettings()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with evaluation_mode([network]), torch.inference_mode():
        for number, sample in enumerate(islice(samples, limit)):
            cam, aux_cam, prediction = _seen(network, sample, settings, torch.device(device))
            figure = _draw(sample, cam, aux_cam, prediction, names, colours)
            # The id comes from the data set: as a file name it must not lead out of the folder.
            files.append(folder / f"{number:03d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', sample.id)}.png")
            figure.savefig(files[-1], dpi=110)
    return files


def _seen(
    network: nn.Module, sample: EvalSample, settings: EvaluationSettings, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Strongest CAM and auxiliary CAM over the labels, and the prediction, `[H, W]` each."""
    size = (sample.image.shape[-2], sample.image.shape[-1])
    images, labels = sample.image.to(device), sample.labels[None].to(device)
    output = see(network, square_image(images, settings.size)[None], settings, labels)
    logits = output.logits.float()
    kept = kept_classes(logits, labels, "true_labels")[0]
    heats = [
        strongest_activation(maps[0].float(), kept, size)[0].cpu().numpy()
        for maps in (output.cam, output.aux_cam)
    ]
    segmentation = resize_map(output.segmentation[0], size)[None]
    prediction = predict(segmentation, logits, labels, "unfiltered")[0]
    return heats[0], heats[1], prediction.cpu().numpy()


def _draw(
    sample: EvalSample,
    cam: NDArray[np.float32],
    aux_cam: NDArray[np.float32],
    prediction: NDArray[np.int64],
    names: Sequence[str],
    colours: NDArray[np.uint8],
) -> Figure:
    height, width = prediction.shape
    figure = Figure(
        figsize=(5 * PANEL_INCHES, PANEL_INCHES * min(height / width, 2.0) + 0.9),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 5)
    image = sample.image.permute(1, 2, 0).cpu().numpy()
    _show(panels[0], image, "image")
    for panel, heat, title in ((panels[1], cam, "CAM"), (panels[2], aux_cam, "auxiliary CAM")):
        _show(panel, image, title)
        panel.imshow(heat, cmap="turbo", vmin=0, vmax=1, alpha=0.6)
    _show(panels[3], _coloured(prediction, colours), "prediction (unfiltered)")
    truth = None if sample.mask is None else sample.mask.cpu().numpy()
    if truth is None:
        panels[4].set_axis_off()
        panels[4].set_title("no mask", fontsize=9)
    else:
        _show(panels[4], _coloured(truth, colours), "truth")
    occurring = set(np.unique(prediction)) | set(() if truth is None else np.unique(truth))
    figure.legend(
        handles=_legend({int(index) for index in occurring}, names, colours),
        loc="outside lower center",
        ncols=8,
        fontsize=8,
        frameon=False,
    )
    tags = [name for name, on in zip(names[1:], sample.labels.tolist(), strict=True) if on > 0.5]
    figure.suptitle(f"{sample.id}: {', '.join(tags) or 'no label'}", fontsize=10)
    return figure


def _show(panel: Axes, picture: NDArray[np.uint8], title: str) -> None:
    panel.imshow(picture, interpolation="nearest")
    panel.set_title(title, fontsize=9)
    panel.set_axis_off()


def _coloured(classes: NDArray[np.integer], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class indices `[H, W]` as colours `[H, W, 3]`; what is no class is light yellow."""
    table = np.full((256, 3), IGNORE_COLOUR, dtype=np.uint8)
    table[: min(len(colours), IGNORE)] = colours[:IGNORE]
    return table[classes]


def _legend(occurring: set[int], names: Sequence[str], colours: NDArray[np.uint8]) -> list[Patch]:
    handles = [
        _patch(colours[index].tolist(), names[index]) for index in sorted(occurring) if index < len(names)
    ]
    if IGNORE in occurring:
        handles.append(_patch(IGNORE_COLOUR, "ignore"))
    return handles


def _patch(colour: Sequence[int], label: str) -> Patch:
    red, green, blue = (value / 255 for value in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="black", linewidth=0.5, label=label)
