"""Draw the method in one figure: one image of a run's data through a co-training step of its networks.

    python docs/method_figure.py outputs/demo/runs/NAME [--position 3] [--out docs/method.png]

Above what the assignment network makes of the weak view, below what the online network makes of the
strong one; the arrows are the two losses that swap the assignments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray
from torch import Tensor

from cosa_dist.benchmark.workload import prepare
from cosa_dist.config.loading import read_yaml, stored_config
from cosa_dist.data.catalog import IGNORE, voc_colour_map
from cosa_dist.data.reading.views import normalise
from cosa_dist.training.checkpoint import restore_newest
from cosa_dist.training.step import assign

COLOURS = np.array(voc_colour_map(), dtype=np.uint8)
COLOURS[IGNORE] = (224, 224, 192)
TITLES = (
    ("weak view", "CAM", "CAM pseudo-label", "reliability weight", "segmentation pseudo-label"),
    ("strong view", "segmentation", "CAM"),
)
COLUMNS = ((0, 1, 2, 3, 4), (0, 2, 4))


def stretched(cam: Tensor) -> NDArray[np.float32]:
    """The strongest class of a CAM `[C, h, w]`, scaled to 0..1."""
    strongest = cam.detach().float().relu().amax(0)
    return (strongest / strongest.max().clamp(min=1e-5)).numpy()


def rows_of_maps(run: Path, position: int) -> list[list[NDArray[np.generic]]]:
    """Maps of both networks for the image at this position of the run's first step."""
    config = stored_config({**read_yaml(run / "config.yaml"), "name": run.name}, "run")
    shown = config.assignment.model_copy(update={"reliability": True})
    work = prepare(config.model_copy(update={"assignment": shown}), torch.device("cpu"))
    restore_newest(work.state, run / "checkpoints")
    batch = next(work.steps)[0]
    labels = assign(work.state, batch, work.accelerator)
    with torch.inference_mode():
        seen = work.state.assignment.eval()(normalise(batch.weak))
        output = work.state.online.eval()(normalise(batch.strong))
    tagged = batch.labels[position] > 0.5
    of_tags = torch.cat([torch.ones(1, dtype=torch.bool), tagged])
    assert labels.reliability is not None
    weight = labels.reliability[position].clamp(max=3.0) / 3.0
    soft = labels.segmentation_pseudo_label[position]
    hard = torch.where(soft.amax(0) > 0.5, soft.argmax(0) + 1, 0)
    prediction = output.segmentation[position].masked_fill(~of_tags[:, None, None], -torch.inf).argmax(0)
    return [
        [
            batch.weak[position].permute(1, 2, 0).numpy(),
            stretched(seen.cam[position][tagged]),
            COLOURS[labels.cam_pseudo_label[position].numpy()],
            weight.numpy(),
            COLOURS[hard.numpy()],
        ],
        [
            batch.strong[position].permute(1, 2, 0).numpy(),
            COLOURS[prediction.numpy()],
            stretched(output.cam[position][tagged]),
        ],
    ]


def arrow(figure: Figure, source: Axes, target: Axes, label: str) -> None:
    """An arrow with a label from one panel to the one that it teaches."""
    patch = ConnectionPatch(
        xyA=(0.5, -0.04),
        xyB=(0.5, 1.2),
        coordsA=source.transAxes,
        coordsB=target.transAxes,
        arrowstyle="-|>",
        mutation_scale=16,
        color="firebrick",
        linewidth=1.6,
    )
    figure.add_artist(patch)
    above, below = source.get_position(), target.get_position()
    x, y = (above.x0 + above.x1) / 2 + 0.01, (above.y0 + below.y1) / 2
    figure.text(x, y, label, color="firebrick", fontsize=10)


def draw(rows: list[list[NDArray[np.generic]]], out: Path) -> None:
    """Draw both rows of maps and the arrows between them."""
    figure = Figure(figsize=(10, 4.9))
    axes = figure.subplots(2, 5, gridspec_kw={"hspace": 0.55, "wspace": 0.08})
    for place in axes.ravel():
        place.set_axis_off()
    for line, columns, titles, maps in zip(axes, COLUMNS, TITLES, rows, strict=True):
        for place, title, picture in zip(line[list(columns)], titles, maps, strict=True):
            place.imshow(picture, cmap="turbo", interpolation="nearest")
            place.set_title(title, fontsize=9)
    for line, name in zip(axes, ("assignment network (EMA)", "online network"), strict=True):
        line[0].text(-0.12, 0.5, name, rotation=90, va="center", ha="center", transform=line[0].transAxes)
    arrow(figure, axes[0][2], axes[1][2], "C2S")
    arrow(figure, axes[0][4], axes[1][4], "S2C")
    figure.savefig(out, dpi=110, bbox_inches="tight")


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--position", type=int, default=0, help="of the image in the run's first batch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("method.png"))
    asked = parser.parse_args()
    draw(rows_of_maps(asked.run, asked.position), asked.out)


if __name__ == "__main__":
    main()
