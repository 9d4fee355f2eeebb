"""How CAMs and predictions of a few images changed over a run: seen again by every checkpoint that was kept.

Training draws pictures at its last evaluation only; what came before is in the checkpoints, of which a run
keeps the newest `training.keep_checkpoints` and the best one. CAMs are those of the moving average (the
assignment network), seen as in training, where they become pseudo-labels; predictions are `unfiltered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.evaluator import has_cams, resize_map, see, square_image
from cosa_dist.evaluation.protocols import predict, strongest_activation
from cosa_dist.evaluation.settings import evaluation_settings
from cosa_dist.training.checkpoint import load_networks
from cosa_dist.training.checkpoint_files import PREFIX, CheckpointError, checkpoints
from cosa_dist.training.precision import autocast

HEAT_OPACITY = 0.6


@dataclass(frozen=True)
class Moment:
    """One image as the networks of one step see it."""

    step: int
    cam: Image.Image | None
    """strongest activation over the image's tags, as heat over the image; None: the network has no CAMs"""
    prediction: NDArray[np.uint8]
    """`[H, W]` classes"""


@dataclass(frozen=True)
class FollowedImage:
    """One image and its moments, oldest first."""

    id: str
    tags: tuple[str, ...]
    image: Image.Image
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Evolution:
    """The followed images, and the checkpoints that could not be read."""

    images: tuple[FollowedImage, ...]
    unreadable: tuple[str, ...] = ()
    network: str = "online"
    """whose predictions they are"""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the moments."""
        return tuple(moment.step for moment in self.images[0].moments) if self.images else ()


def follow(
    run: Path,
    samples: Sequence[EvalSample],
    class_names: Sequence[str],
    device: torch.device,
    network: str = "online",
) -> Evolution:
    """See the samples with the networks of each kept checkpoint.

    Args:
        run: run folder.
        samples: images with their tags; masks are not needed.
        class_names: the C foreground classes.
        device: where the networks go, one checkpoint at a time.
        network: which one predicts.

    Raises:
        ValueError: no checkpoint can be read, or there are no samples.
    """
    moments: list[list[Moment]] = [[] for _ in samples]
    unreadable = []
    for path in checkpoints(run / "checkpoints"):
        step = int(path.name.removeprefix(PREFIX))
        try:
            config, networks = load_networks(run, str(step), device)
        except CheckpointError as error:
            unreadable.append(str(error))
            continue
        _, average = networks.values()
        with autocast(config.training.precision, device):
            for sample, seen in zip(samples, moments, strict=True):
                seen.append(_moment(step, networks[network], average, sample, config, device))
    if not samples or not moments[0]:
        raise ValueError("; ".join(unreadable) or f"{run} has no checkpoint, or its split has no image")
    return Evolution(
        tuple(
            FollowedImage(sample.id, _tags(sample, class_names), _pixels(sample), tuple(seen))
            for sample, seen in zip(samples, moments, strict=True)
        ),
        tuple(unreadable),
        network,
    )


@torch.inference_mode()
def _moment(
    step: int,
    predicting: nn.Module,
    average: nn.Module,
    sample: EvalSample,
    config: RunConfig,
    device: torch.device,
) -> Moment:
    settings = evaluation_settings(config)
    size = (sample.image.shape[-2], sample.image.shape[-1])
    labels = sample.labels[None].to(device)
    square = square_image(sample.image.to(device), settings.size)[None]
    output = see(predicting, square, settings, labels)
    maps = resize_map(output.segmentation[0], size)[None]
    prediction = predict(maps, output.logits.float(), labels, "unfiltered")[0]
    cam = None
    if has_cams(average):
        in_training = replace(settings, scales=config.assignment.scales, flip=config.assignment.flip)
        maps = see(average, square, in_training, labels).cam[0].float()
        cam = heat_over(_pixels(sample), strongest_activation(maps, labels[0] > 0.5, size)[0])
    return Moment(step, cam, prediction.to(torch.uint8).cpu().numpy())


def heat_over(image: Image.Image, values: Tensor) -> Image.Image:
    """Lay values `[H, W]` in 0..1 as heat (the colours of the run's pictures) over an RGB image."""
    colours = colormaps["turbo"](values.clamp(0, 1).cpu().numpy())[..., :3]
    heat = Image.fromarray((colours * 255).round().astype(np.uint8))
    return Image.blend(image, heat, HEAT_OPACITY)


def _pixels(sample: EvalSample) -> Image.Image:
    return Image.fromarray(sample.image.permute(1, 2, 0).numpy())


def _tags(sample: EvalSample, class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, on in zip(class_names, sample.labels.tolist(), strict=True) if on > 0.5)
