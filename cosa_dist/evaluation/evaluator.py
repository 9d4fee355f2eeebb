"""Evaluates networks on images with masks: segmentation, CAMs and image labels in one pass.

Each image is resized to a square, passed through every network at several scales and mirrored, and the maps
are brought to the mask's own size before they are counted (released code). Any number of ranks may share the
work as long as each image goes to one rank; the counts are summed, so all ranks return the same reports, and
the same as a single process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from cosa_dist.collective import together
from cosa_dist.config.schema import CrfConfig, EvaluationConfig, RunConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.protocols import multi_scale_forward, square_image
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.evaluation.tally import Tally
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, CrfName, DenseCrf


@dataclass(frozen=True)
class Evaluator:
    """How networks are evaluated."""

    class_names: Sequence[str]
    """the C foreground classes"""
    config: EvaluationConfig
    """scales, sizes and thresholds"""
    aux_cam_last_scale_only: bool = False
    """read the auxiliary CAM from the last scale only (released code)"""
    cam_background_grid: Sequence[float] = ()
    """thresholds at which the CAM is also judged under `predicted_labels`"""
    device: torch.device | str = "cpu"
    """where the networks are and the counting is done"""
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    """makes the context (such as autocast) in which the networks run"""
    progress: Callable[[int], object] = lambda done: None
    """called after every batch with the number of images this rank has counted"""
    masks_needed: bool = True
    """refuse images of which none has a mask; otherwise their reports have no scores"""

    @classmethod
    def of_run(cls, run: RunConfig, class_names: Sequence[str], **options: Any) -> Evaluator:
        """The evaluator of a run."""
        return cls(class_names, run.evaluation, run.assignment.aux_cam_last_scale_only, **options)

    def evaluate(
        self, networks: Mapping[str, nn.Module], samples: Iterable[EvalSample]
    ) -> dict[str, EvalReport]:
        """Evaluate networks on one set of images; see `evaluate_parts`."""
        return self.evaluate_parts(networks, [samples])[-1]

    def evaluate_parts(
        self, networks: Mapping[str, nn.Module], parts: Sequence[Iterable[EvalSample]]
    ) -> list[dict[str, EvalReport]]:
        """Evaluate networks on growing sets of images: for each part, reports on it and all parts before it.

        Each image is on one rank and read once for all networks; those without a mask are only counted. The
        reports are the same on every rank and named as the networks.

        Raises:
            ValueError: no image has a mask (and `masks_needed`), one was counted twice, or sizes do not fit.
            RuntimeError: another rank failed; which and why.
        """
        device, grid = torch.device(self.device), self.cam_background_grid
        tallies = {
            name: Tally(self.class_names, self.config, device, cams=has_cams(network), grid=grid)
            for name, network in networks.items()
        }
        reports, done = [], 0
        with evaluation_mode(networks.values()), torch.inference_mode():
            for samples in parts:
                with together(device):
                    with_mask = _with_mask(samples, tallies.values())
                    while batch := list(islice(with_mask, self.config.batch_size)):
                        self._count(networks, tallies, batch)
                        done += len(batch)
                        self.progress(done)
                found = {name: tally.report(name, self.masks_needed) for name, tally in tallies.items()}
                reports.append({name: replace(one, settings=self._settings()) for name, one in found.items()})
        return reports

    def _count(
        self, networks: Mapping[str, nn.Module], tallies: Mapping[str, Tally], batch: Sequence[EvalSample]
    ) -> None:
        """Judge everything that each network says of a batch."""
        crf, count = self.config.crf, len(self.class_names)
        for sample in batch:
            _check_sample(sample, count)
        originals = [sample.image.to(self.device) for sample in batch]
        squares = torch.stack([square_image(image, self.config.size) for image in originals])
        known = torch.stack([sample.labels for sample in batch]).to(self.device)
        # The grid's protocol asks for the CAMs of the predicted labels, known only after the pass.
        labels = None if self.cam_background_grid else known
        # One CRF of each image at its own size, for all networks and protocols.
        crfs = [DenseCrf.build(image[None], crf) if crf.enabled else None for image in originals]
        for name, network in networks.items():
            with self.precision():
                output = multi_scale_forward(
                    network, squares, self.config, labels, self.aux_cam_last_scale_only
                )
            planes, classes = output.segmentation.shape[1], output.logits.shape[1]
            if (planes, classes) != (count + 1, count):
                raise ValueError(
                    f"the network {name!r} has {classes} classes and {planes} segmentation planes, but the "
                    f"data set has {count} classes: use the one it was trained for"
                )
            for index, sample in enumerate(batch):
                tallies[name].add(output, index, sample, crfs[index])

    def _settings(self) -> dict[str, Any]:
        """How it is measured, as plain values."""
        used = {"size", "scales", "flip", "cam_background", "batch_size"}
        return {
            **self.config.model_dump(mode="json", include=used),
            "cam_background_grid": list(self.cam_background_grid),
            "aux_cam_last_scale_only": self.aux_cam_last_scale_only,
            "crf": self.config.crf.model_dump(exclude={"enabled"}) if self.config.crf.enabled else None,
        }


def with_crf(config: EvaluationConfig, crf: CrfConfig | CrfName | None) -> EvaluationConfig:
    """The evaluation with another dense CRF, one by name, or none."""
    chosen = CrfConfig() if crf is None else CRF_SETTINGS[crf] if isinstance(crf, str) else crf
    return config.model_copy(update={"crf": chosen.model_copy(update={"enabled": crf is not None})})


def has_cams(network: nn.Module) -> bool:
    """Whether a network has class activation maps; a segmenter trained on masks has none."""
    return bool(getattr(network, "has_cams", True))


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


def _with_mask(samples: Iterable[EvalSample], tallies: Iterable[Tally]) -> Iterator[EvalSample]:
    """The samples that have a mask; the others are noted in every tally."""
    tallies = list(tallies)
    for sample in samples:
        if sample.mask is not None:
            yield sample
            continue
        for tally in tallies:
            tally.skip_image()


def _check_sample(sample: EvalSample, classes: int) -> None:
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
