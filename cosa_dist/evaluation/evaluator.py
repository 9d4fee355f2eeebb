"""Evaluates networks on images with masks: segmentation, CAMs and image labels in one pass.

Each image is resized to a square, seen by every network at several scales and mirrored, and the
maps are brought to the mask's own size before they are counted (released code). Any number of ranks
may share the work as long as each image goes to one rank; the counts are summed, so all ranks
return the same reports, and the same as a single process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosa_dist.assignment.inference import MultiScaleOutput, multi_scale
from cosa_dist.collective import together
from cosa_dist.data.reading.views import normalise
from cosa_dist.evaluation.protocols import (
    CRF_PROTOCOLS,
    PROTOCOLS,
    EvaluationSettings,
    cam_prediction,
    kept_classes,
    predict,
    predict_with_crf,
    strongest_activation,
)
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.evaluation.tally import Tally
from cosa_dist.lattice.dense_crf import DenseCrf

if TYPE_CHECKING:
    from cosa_dist.data.reading.loader import EvalSample


def evaluate(
    networks: Mapping[str, nn.Module],
    samples: Iterable[EvalSample],
    *,
    class_names: Sequence[str],
    settings: EvaluationSettings | None = None,
    device: torch.device | str = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: Callable[[int], None] | None = None,
    masks_needed: bool = True,
) -> dict[str, EvalReport]:
    """Evaluate some networks on the same images; each image is read once for all of them.

    See `evaluate_parts`; here all images are one part.
    """
    return evaluate_parts(
        networks,
        [samples],
        class_names=class_names,
        settings=settings,
        device=device,
        precision=precision,
        progress=progress,
        masks_needed=masks_needed,
    )[-1]


def evaluate_parts(
    networks: Mapping[str, nn.Module],
    parts: Sequence[Iterable[EvalSample]],
    *,
    class_names: Sequence[str],
    settings: EvaluationSettings | None = None,
    device: torch.device | str = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: Callable[[int], None] | None = None,
    masks_needed: bool = True,
) -> list[dict[str, EvalReport]]:
    """Evaluate some networks on growing sets of images in one pass over all of them.

    Args:
        networks: networks on `device`, by the name that their report and metrics carry.
        parts: this rank's images, each of them on one rank; those without a mask are only counted.
        class_names: the C foreground classes.
        settings: scales, sizes and thresholds; the released code's if left out.
        device: where the networks are and the counting is done.
        precision: makes the context (such as autocast) in which the networks run.
        progress: called after every batch with the number of images this rank has counted.
        masks_needed: refuse images of which none has a mask; otherwise their reports have no scores.

    Returns:
        For each part, a report per network on it and all parts before it, the same on every rank.

    Raises:
        ValueError: if no image has a mask (and `masks_needed`), one was counted twice, or sizes do not fit.
        RuntimeError: another rank failed; which and why.
    """
    settings = settings or EvaluationSettings()
    device = torch.device(device)
    tallies = {
        name: Tally(class_names, settings, device, cams=has_cams(network))
        for name, network in networks.items()
    }
    reports, done = [], 0
    with evaluation_mode(networks.values()), torch.inference_mode():
        for samples in parts:
            with together(device):
                for batch in _batches(_with_mask(samples, tallies.values()), settings.batch_size):
                    _count_batch(networks, tallies, batch, settings, device, precision)
                    done += len(batch)
                    if progress is not None:
                        progress(done)
            reports.append(
                {name: tally.report(name, masks_needed=masks_needed) for name, tally in tallies.items()}
            )
    return reports


def _count_batch(
    networks: Mapping[str, nn.Module],
    tallies: Mapping[str, Tally],
    batch: Sequence[EvalSample],
    settings: EvaluationSettings,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
) -> None:
    """Judge everything that each network says of a batch."""
    classes = len(next(iter(tallies.values())).class_names)
    images, labels = _stacked(batch, settings, classes, device)
    crfs = [_crf_of(sample, settings, device) for sample in batch]
    for name, network in networks.items():
        with precision():
            output = see(network, images, settings, labels)
        _check_output(output, classes, name)
        for index, sample in enumerate(batch):
            _count_image(tallies[name], output, index, sample, crfs[index], device)


def has_cams(network: nn.Module) -> bool:
    """Whether a network has class activation maps; a segmenter trained on masks has none."""
    return bool(getattr(network, "has_cams", True))


def square_image(image: Tensor, size: int) -> Tensor:
    """Normalise an image and resize it to a square, aspect ratio not kept (released code).

    Args:
        image: `[3, H, W]` uint8.
        size: side of the square in pixels.

    Returns:
        `[3, size, size]` float32.
    """
    resized = functional.interpolate(
        normalise(image)[None], size=(size, size), mode="bilinear", align_corners=False
    )
    return resized[0]


def see(
    network: nn.Module, images: Tensor, settings: EvaluationSettings, labels: Tensor | None = None
) -> MultiScaleOutput:
    """The multi-scale pass of an evaluation over square images `[B, 3, S, S]`.

    With `labels` `[B, C]`, the CAMs of absent classes are not computed and are zero.
    """
    return multi_scale(
        network,
        images,
        settings.scales,
        flip=settings.flip,
        aux_cam_last_scale_only=settings.aux_cam_last_scale_only,
        labels=labels,
    )


@contextmanager
def evaluation_mode(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Put networks into evaluation mode, and every module back to its own mode afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one image's maps `[P, h, w]` to `size` (H, W), bilinear, in fp32 -> `[P, H, W]`."""
    maps = maps.float()
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _crf_of(sample: EvalSample, settings: EvaluationSettings, device: torch.device) -> DenseCrf | None:
    """The CRF of one image at its own size, for all networks and protocols; None if none is wanted."""
    return DenseCrf.build(sample.image[None].to(device), settings.crf) if settings.crf else None


def _count_image(
    tally: Tally,
    output: MultiScaleOutput,
    index: int,
    sample: EvalSample,
    crf: DenseCrf | None,
    device: torch.device,
) -> None:
    """Judge everything that a network says of one image of its batch."""
    assert sample.mask is not None
    mask = sample.mask.to(device)
    context = None if sample.context is None else sample.context.to(device)
    labels = sample.labels.to(device)
    logits, size = output.logits[index].float(), (mask.shape[0], mask.shape[1])
    tally.add_image(sample.id, logits, output.aux_logits[index].float(), labels)

    segmentation = resize_map(output.segmentation[index], size)
    for protocol in PROTOCOLS:
        prediction = predict(segmentation[None], logits[None], labels[None], protocol)[0]
        tally.add_prediction(protocol, prediction, mask, context)
    if crf is not None:
        for protocol in CRF_PROTOCOLS:
            prediction = predict_with_crf(segmentation[None], logits[None], labels[None], crf, protocol)[0]
            tally.add_prediction(f"{protocol}_crf", prediction, mask, context)

    if not tally.cams:
        return
    cam, aux_cam = output.cam[index].float(), output.aux_cam[index].float()
    true_labels = kept_classes(logits, labels, "true_labels")
    for measurement, maps in (("cam_true_labels", cam), ("aux_cam_true_labels", aux_cam)):
        prediction = cam_prediction(maps, true_labels, tally.settings.cam_background, size)
        tally.add_prediction(measurement, prediction, mask, context)
    if tally.grid:
        predicted = kept_classes(logits, labels, "predicted_labels")
        tally.add_activation(*strongest_activation(cam, predicted, size), mask)


def _with_mask(samples: Iterable[EvalSample], tallies: Iterable[Tally]) -> Iterator[EvalSample]:
    """The samples that have a mask; the others are noted in every tally."""
    tallies = list(tallies)
    for sample in samples:
        if sample.mask is None:
            for tally in tallies:
                tally.skip_image()
        else:
            yield sample


def _stacked(
    batch: Sequence[EvalSample], settings: EvaluationSettings, classes: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Square images `[B, 3, S, S]`, and the labels `[B, C]` if only their CAMs will be read."""
    for sample in batch:
        _check_sample(sample, classes)
    images = [square_image(sample.image.to(device), settings.size) for sample in batch]
    # The grid's protocol asks for the CAMs of the predicted labels, known only after the pass.
    if settings.cam_background_grid:
        return torch.stack(images), None
    return torch.stack(images), torch.stack([sample.labels for sample in batch]).to(device)


def _batches(samples: Iterable[EvalSample], size: int) -> Iterator[list[EvalSample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, size)):
        yield batch


def _check_sample(sample: EvalSample, classes: int) -> None:
    assert sample.mask is not None
    for name, plane in (("mask", sample.mask), ("context", sample.context)):
        if plane is not None and plane.shape != sample.image.shape[-2:]:
            raise ValueError(
                f"image {sample.id!r} is {tuple(sample.image.shape[-2:])} pixels (H, W) but its "
                f"{name} {tuple(plane.shape)}: they must have one size"
            )
    if sample.labels.shape != (classes,):
        raise ValueError(
            f"image {sample.id!r} has labels of shape {tuple(sample.labels.shape)}, but there are "
            f"{classes} class names: evaluate with the class names of the data set"
        )


def _check_output(output: MultiScaleOutput, classes: int, name: str) -> None:
    planes = (output.segmentation.shape[1], output.logits.shape[1])
    if planes != (classes + 1, classes):
        raise ValueError(
            f"the network {name!r} has {planes[1]} classes and {planes[0]} segmentation planes, "
            f"but the data set has {classes} classes: use the one it was trained for"
        )
