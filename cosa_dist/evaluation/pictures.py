"""Pictures of what a run has learned: image, both CAMs, pseudo-labels, their weights, prediction and truth.

One PNG per image, made without a display. The CAMs show the strongest activation over the image's labels;
CAM pseudo-label (CPL), segmentation pseudo-label (SPL) and weights are those the assignment network gives
the image; the prediction is `unfiltered`. Classes come in the data set's colours, with a legend of those
that occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from torch import Tensor, nn

from cosa_dist.data.catalog import IGNORE
from cosa_dist.evaluation.evaluator import evaluation_mode, has_cams, resize_map, see, square_image
from cosa_dist.evaluation.labeller import Labeller, label_image
from cosa_dist.evaluation.protocols import (
    EvaluationSettings,
    kept_classes,
    predict,
    strongest_activation,
)

if TYPE_CHECKING:
    from cosa_dist.data.reading.loader import EvalSample

IGNORE_COLOUR = (224, 224, 192)
PANEL_INCHES = 2.4


def save_pictures(
    network: nn.Module,
    samples: Iterable[EvalSample],
    folder: Path | str,
    *,
    class_names: Sequence[str],
    palette: ArrayLike,
    labeller: Labeller | None = None,
    settings: EvaluationSettings | None = None,
    device: torch.device | str = "cpu",
    limit: int = 8,
) -> list[Path]:
    """Draw the first `limit` samples, one PNG each.

    Args:
        network: network on `device` that predicts; its training mode is put back afterwards.
        samples: images with labels; a mask is not needed.
        folder: where the files go; made if it is not there.
        class_names: the C foreground classes.
        palette: `[K or more, 3]` colours 0..255, background first.
        labeller: the assignment network, for the CAMs and pseudo-labels; without one, the CAMs are the
            predicting network's and there are no pseudo-labels.
        settings: scales, flip and size of the multi-scale pass.
        device: where the networks are.
        limit: largest number of pictures.

    Returns:
        The files in the samples' order.

    Raises:
        ValueError: if the palette has fewer than K colours.
    """
    settings = settings or EvaluationSettings()
    with evaluation_mode([network, *([labeller.network] if labeller else [])]), torch.inference_mode():
        chosen = islice(samples, limit)
        drawn = ((sample, _panels(network, labeller, sample, settings, device)) for sample in chosen)
        return save_panels(drawn, folder, class_names=class_names, palette=palette)


def save_panels(
    drawn: Iterable[tuple[EvalSample, Sequence[Panel]]],
    folder: Path | str,
    *,
    class_names: Sequence[str],
    palette: ArrayLike,
) -> list[Path]:
    """Draw samples beside maps of them, one PNG each; see `save_pictures`."""
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


@dataclass(frozen=True)
class Panel:
    """One map `[H, W]` of a picture: activations or weights as heat, or classes in their colours."""

    title: str
    values: NDArray[np.generic]
    heat_up_to: float = 0.0
    """value of the hottest colour; 0: the map holds classes"""


def _panels(
    network: nn.Module,
    labeller: Labeller | None,
    sample: EvalSample,
    settings: EvaluationSettings,
    device: torch.device | str,
) -> list[Panel]:
    """The maps of one image, all of the image's size."""
    size = (sample.image.shape[-2], sample.image.shape[-1])
    image, labels = sample.image.to(device), sample.labels[None].to(device)
    output = see(network, square_image(image, settings.size)[None], settings, labels)
    logits = output.logits.float()
    segmentation = resize_map(output.segmentation[0], size)[None]
    prediction = predict(segmentation, logits, labels, "unfiltered")[0]
    panels: list[Panel] = []
    if labeller is None and has_cams(network):
        kept = kept_classes(logits, labels, "true_labels")[0]
        heats = [strongest_activation(m[0].float(), kept, size)[0] for m in (output.cam, output.aux_cam)]
        panels = [heat_panel("CAM", heats[0]), heat_panel("auxiliary CAM", heats[1])]
    elif labeller is not None:
        given = label_image(labeller, sample, settings.size, torch.device(device))
        used = "" if labeller.config.reliability else " (not used)"
        panels = [
            heat_panel("CAM", given.cam),
            heat_panel("auxiliary CAM", given.aux_cam),
            class_panel("CAM pseudo-label", given.cam_label),
            class_panel("segmentation pseudo-label", given.segmentation_label),
            heat_panel(f"weight, 0 to 3{used}", given.weight, 3.0),
        ]
    panels.append(class_panel("prediction (unfiltered)", prediction))
    if sample.mask is not None:
        panels.append(class_panel("truth", sample.mask))
    return panels


def heat_panel(title: str, values: Tensor, up_to: float = 1.0) -> Panel:
    """A map `[H, W]` shown as heat up to a value."""
    return Panel(title, values.float().cpu().numpy(), up_to)


def class_panel(title: str, values: Tensor) -> Panel:
    """A map `[H, W]` of classes in their colours."""
    return Panel(title, values.cpu().numpy())


def _draw(
    sample: EvalSample, panels: Sequence[Panel], names: Sequence[str], colours: NDArray[np.uint8]
) -> Figure:
    """Image and maps in one or two rows, with tags above and a legend below."""
    height, width = sample.image.shape[-2:]
    rows = 1 if len(panels) <= 4 else 2
    columns = -(-(len(panels) + 1) // rows)
    figure = Figure(
        figsize=(columns * PANEL_INCHES, rows * PANEL_INCHES * min(height / width, 2.0) + 0.9),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns).ravel()
    image = sample.image.permute(1, 2, 0).cpu().numpy()
    for place in axes:
        place.set_axis_off()
    _show(axes[0], image, "image")
    occurring: set[int] = set()
    for place, panel in zip(axes[1:], panels, strict=False):
        if panel.heat_up_to:
            _show(place, image, panel.title)
            place.imshow(panel.values, cmap="turbo", vmin=0, vmax=panel.heat_up_to, alpha=0.6)
        else:
            _show(place, _coloured(panel.values.astype(np.int64), colours), panel.title)
            occurring |= {int(index) for index in np.unique(panel.values)}
    figure.legend(
        handles=_legend(occurring, names, colours),
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
