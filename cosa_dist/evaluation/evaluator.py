"""Evaluates networks on images with masks: segmentation, CAMs and image labels in one pass.

Each image is resized to a square, passed through every network at several scales and mirrored, and the maps
are brought to the mask's own size before they are counted (released code). Any number of ranks may share the
images; the counts are summed, so all ranks return the reports that a single process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.collective import concatenate_over_ranks, gather_objects, sum_over_ranks, together
from cosa_dist.config.schema import CrfConfig, EvaluationConfig, RunConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.confusion import (
    checked_confusion,
    class_average_precision,
    count_places,
    image_average_precision,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    pair_counts,
    per_cent,
    pixel_accuracy,
)
from cosa_dist.evaluation.image_set import benchmark_of, image_key, image_set
from cosa_dist.evaluation.intervals import ImageCounts
from cosa_dist.evaluation.protocols import (
    CRF_PROTOCOLS,
    PROTOCOLS,
    cam_prediction,
    kept_classes,
    multi_scale_forward,
    predict,
    predict_with_crf,
    resize_map,
    strongest_activation,
)
from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, CrfName, DenseCrf
from cosa_dist.model.network import shared_backbone_once
from cosa_dist.stopwatch import one_thread

CAM_MEASUREMENTS = ("cam_true_labels", "aux_cam_true_labels")
CRF_MEASUREMENTS = tuple(f"{protocol}_crf" for protocol in CRF_PROTOCOLS)
EXPLICIT = "explicit_in_training"  # attribute of attention that is fused elsewhere, see `wrap_online`
BACKGROUND_GRID = tuple(step / 20 for step in range(1, 20))
"""thresholds of which the control takes the best"""


@dataclass(frozen=True)
class Evaluator:
    """How networks are evaluated."""

    class_names: Sequence[str]  # the C foreground classes
    config: EvaluationConfig  # scales, sizes and thresholds
    aux_cam_last_scale_only: bool = False  # read the auxiliary CAM from the last scale only (released code)
    cam_background_grid: Sequence[float] = ()
    """thresholds at which the CAM is also judged under `predicted_labels`"""
    device: torch.device | str = "cpu"  # where the networks are and the counting is done
    precision: Callable[[], AbstractContextManager[object]] = nullcontext  # makes that of the networks
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
                with together():
                    coming = iter(samples)
                    while batch := list(islice(coming, self.config.batch_size)):
                        with_mask = [sample for sample in batch if sample.mask is not None]
                        for tally in tallies.values():
                            tally.skipped += len(batch) - len(with_mask)
                        if with_mask:
                            with shared_backbone_once(networks.values(), self.config.in_batches):
                                self._count(networks, tallies, with_mask)
                        done += len(with_mask)
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
        originals = [sample.image.to(self.device, non_blocking=True) for sample in batch]
        tags = torch.stack([sample.labels for sample in batch])
        most = max(1, int((tags > 0.5).sum(1).max()))
        known = tags.to(self.device, non_blocking=True)
        # The grid's protocol asks for the CAMs of the predicted labels, known only after the pass.
        labels = None if self.cam_background_grid else known
        # One CRF of each image at its own size, for all networks and protocols.
        crfs = [DenseCrf.build(image[None], crf) if crf.enabled else None for image in originals]
        for name, network in networks.items():
            with self.precision():
                outputs = multi_scale_forward(
                    network, originals, self.config, labels, self.aux_cam_last_scale_only, most
                )
            planes, classes = (maps.shape[1] for maps in (outputs[0][0].segmentation, outputs[0][0].logits))
            if (planes, classes) != (count + 1, count):
                raise ValueError(
                    f"the network {name!r} has {classes} classes and {planes} segmentation planes, but the "
                    f"data set has {count} classes: use the one it was trained for"
                )
            for (output, index), sample, built in zip(outputs, batch, crfs, strict=True):
                tallies[name].add(output, index, sample, built)

    def _settings(self) -> dict[str, Any]:
        """How it is measured, as plain values."""
        used = ("geometry", "size", "views_from", "scales", "flip", "merging", "merge_at")
        return {
            **self.config.model_dump(mode="json", include={*used, "cam_background", "batch_size"}),
            "words": self.config.words,
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
    """Evaluation mode, and attention as in a network that is loaded; all as it was afterwards."""
    modules = [vars(module) for network in networks for module in network.modules()]
    before = [{n: v for n, v in one.items() if n in ("training", "fused_attn")} for one in modules]
    for one in modules:
        one |= {"training": False} | ({"fused_attn": True} if EXPLICIT in one else {})
    try:
        yield
    finally:
        for one, values in zip(modules, before, strict=True):
            one.update(values)


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


class ControlResult(NamedTuple):
    """What the classifier alone reaches: the grid's best CAM threshold, and the mIoU at it in per cent."""

    background: float
    training_miou: float
    validation_miou: float


def choose_background(report: EvalReport) -> tuple[float, float]:
    """The (lowest) threshold of the best CAM mIoU under `predicted_labels` (ours), and that mIoU."""
    scored = [(miou, -t) for t, miou in report.cam_miou_by_background.items() if miou is not None]
    if not scored:
        raise ValueError(
            f"the report of {report.network!r} has no CAM scores by background threshold: "
            "evaluate with cam_background_grid set, on masks in which a class occurs"
        )
    miou, negative = max(scored)
    return -negative, miou


def classification_control(
    network: nn.Module, training: Iterable[EvalSample], validation: Iterable[EvalSample], evaluator: Evaluator
) -> ControlResult:
    """The control experiment: how far the image classifier alone gets.

    A run of classification losses only has no segmentation that was trained. Its fairest prediction is the
    CAM of the classes that the classifier predicts, at the background threshold that is best on **training**
    images; the whole method adds the distance of its `unfiltered` mIoU to this. Both are this rank's part.
    """
    plain = replace(evaluator, config=with_crf(evaluator.config, None), masks_needed=True)

    def judge(samples: Iterable[EvalSample], grid: tuple[float, ...]) -> EvalReport:
        return replace(plain, cam_background_grid=grid).evaluate({"control": network}, samples)["control"]

    background, training_miou = choose_background(judge(training, BACKGROUND_GRID))
    _, validation_miou = choose_background(judge(validation, (background,)))
    return ControlResult(background, training_miou, validation_miou)


class Tally:
    """Running counts of one network on a device; add images, then ask for the report on every rank.

    Every count is a sum over images, so tallies of ranks are simply added. What grows with the number of
    images is each one's id, classifiers' scores and counts by class, which say how sure a score is.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        config: EvaluationConfig,
        device: torch.device,
        *,
        cams: bool = True,
        grid: Sequence[float] = (),
    ) -> None:
        """Start empty for C foreground classes; `grid`: background thresholds to judge the CAM at."""
        self.class_names, self.config, self.cams = tuple(class_names), config, cams
        self.grid = tuple(sorted(set(grid))) if cams else ()
        self._classes, self._device = len(self.class_names) + 1, device
        measured = (*PROTOCOLS, *CAM_MEASUREMENTS * cams, *CRF_MEASUREMENTS * config.crf.enabled)
        self._pairs = {m: self._zeros(self._classes, self._classes + 1) for m in measured}
        self._context = {m: self._zeros(self._classes) for m in measured}
        self._by_background = self._zeros(len(self.grid) + 1, self._classes, self._classes)
        self.skipped = 0  # images that cannot be counted because they have no mask
        self._ids: list[str] = []
        self._rows: list[Tensor] = []
        self._tables: list[Tensor] = []  # of each image, as `ImageCounts` has them

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def add(self, output: MultiScaleOutput, index: int, sample: EvalSample, crf: DenseCrf | None) -> None:
        """Judge all that a network says of one image of its batch."""
        assert sample.mask is not None
        mask = sample.mask.to(self._device, non_blocking=True)
        labels = sample.labels.to(self._device, non_blocking=True)
        context = None if sample.context is None else sample.context.to(self._device, non_blocking=True)
        # How many classes the protocols keep, as far as it is known without the device.
        tags = int((sample.labels > 0.5).sum())
        count = {"unfiltered": len(self.class_names), "true_labels": tags}
        logits, size = output.logits[index].float(), (mask.shape[0], mask.shape[1])
        self.add_image(sample.id, logits, output.aux_logits[index].float(), labels)
        segmentation = resize_map(output.segmentation[index], size)
        kept = {protocol: kept_classes(logits, labels, protocol) for protocol in PROTOCOLS}
        for protocol in PROTOCOLS:
            prediction = predict(segmentation, kept[protocol], count.get(protocol))
            self.add_prediction(protocol, prediction, mask, context)
        if crf is not None:
            for protocol in CRF_PROTOCOLS:
                refined = predict_with_crf(segmentation, kept[protocol], crf)
                self.add_prediction(f"{protocol}_crf", refined, mask, context)
        if not self.cams:
            return
        cam, background = output.cam[index], self.config.cam_background
        for measurement, maps in zip(CAM_MEASUREMENTS, (cam, output.aux_cam[index]), strict=True):
            prediction = cam_prediction(maps, kept["true_labels"], background, size, tags)
            self.add_prediction(measurement, prediction, mask, context)
        if self.grid:
            self.add_activation(*strongest_activation(cam, kept["predicted_labels"], size), mask)

    def add_image(self, image_id: str, logits: Tensor, aux_logits: Tensor, labels: Tensor) -> None:
        """Start an image: count it and keep its classifiers' scores and labels (`[C]` each)."""
        self._ids.append(image_id)
        self._rows.append(torch.stack([logits, aux_logits, labels]).float())
        self._tables.append(self._zeros(1 + 2 * len(self._pairs), self._classes).int())

    @one_thread()
    def add_prediction(
        self, measurement: str, prediction: Tensor, mask: Tensor, context: Tensor | None
    ) -> None:
        """Count the pixels of the image's prediction (`[H, W]` each) for one of the measurements."""
        pairs, table = pair_counts(prediction, mask, self._classes), self._tables[-1]
        self._pairs[measurement] += pairs
        place = 1 + 2 * list(self._pairs).index(measurement)
        table[0], table[place], table[place + 1] = pairs.sum(1), pairs.diagonal(), pairs.sum(0)[:-1]
        if context is not None:
            inside = prediction.masked_fill((context <= 0) | (mask != 0), self._classes)
            self._context[measurement] += count_places(inside, self._classes + 1)[:-1]

    def add_activation(self, value: Tensor, strongest: Tensor, mask: Tensor) -> None:
        """Count one image's strongest activation and its class 1..C (`[H, W]`) for the whole grid at once."""
        thresholds = torch.tensor(self.grid, dtype=value.dtype).to(value.device, non_blocking=True)
        # bucketize gives the number of thresholds below the value: the pixel is background under
        # threshold j exactly where its bucket is at most j.
        buckets = torch.bucketize(value, thresholds).reshape(-1)
        truth = mask.reshape(-1).long()
        counted = truth < self._classes
        places = (buckets * self._classes + truth) * self._classes + strongest.reshape(-1)
        bins = self._by_background.numel()
        counts = count_places(places.masked_fill(~counted, bins), bins + 1)[:-1]
        self._by_background += counts.reshape(self._by_background.shape)

    def report(self, network: str, masks_needed: bool = True) -> EvalReport:
        """Sum the counts over the ranks and read the scores from them; every rank must call this."""
        rows, counts = self._images_of_all_ranks(network)
        keys = [image_key(image_id) for image_id in counts.ids]
        if not keys and masks_needed:
            raise ValueError(
                f"the evaluation of the network {network!r} found no image with a mask: "
                "choose a split that has masks"
            )
        logits, aux_logits, labels = rows.unbind(1)
        by_background = sum_over_ranks(self._by_background)
        true_pixels = sum_over_ranks(self._pairs["unfiltered"]).sum(1).tolist()
        aux_precision = class_average_precision(aux_logits, labels).nanmean()
        names = ("background", *self.class_names)
        return EvalReport(
            network=network,
            class_names=self.class_names,
            images=len(keys),
            images_without_mask=int(sum_over_ranks(self._zeros(1) + self.skipped)),
            scores={m: self._score(m) for m in self._pairs},
            map_image=per_cent(image_average_precision(logits, labels).mean()),
            map_class=per_cent(class_average_precision(logits, labels).nanmean()),
            aux_map_class=per_cent(aux_precision) if self.cams else None,
            cam_miou_by_background={
                threshold: per_cent(mean_iou(_background_below(by_background, index)))
                for index, threshold in enumerate(self.grid)
            },
            image_set=image_set(self.class_names, keys, true_pixels),
            benchmark=benchmark_of(self.class_names, keys),
            counts=counts,
            absent_classes=tuple(n for n, pixels in zip(names, true_pixels, strict=True) if not pixels),
        )

    def _images_of_all_ranks(self, network: str) -> tuple[Tensor, ImageCounts]:
        """Scores and labels `[N, 3, C]` and counts of all images, ordered alike for any number of ranks."""
        none = torch.zeros(0, 3, self._classes - 1, device=self._device)
        rows = concatenate_over_ranks(torch.stack(self._rows) if self._rows else none)
        tables = torch.stack(self._tables) if self._tables else self._zeros(0, 1, self._classes)
        own = ImageCounts.of_table(self._ids, list(self._pairs), tables.cpu().numpy())
        parts = gather_objects(own)
        ids = [image_id for part in parts for image_id in part.ids]
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"the evaluation of the network {network!r} counted {len(ids)} images of which only "
                f"{len(set(ids))} are different: give every image to one rank once, and unique ids"
            )
        return rows[sorted(range(len(ids)), key=ids.__getitem__)], ImageCounts.merged(parts)

    def _score(self, measurement: str) -> SegmentationScore:
        confusion = checked_confusion(sum_over_ranks(self._pairs[measurement]).cpu())
        context = sum_over_ranks(self._context[measurement]).tolist()
        inside = sum(context)
        return SegmentationScore(
            miou=per_cent(mean_iou(confusion)),
            pixel_accuracy=per_cent(pixel_accuracy(confusion)),
            mean_accuracy=per_cent(mean_accuracy(confusion)),
            iou=tuple(per_cent(value) for value in iou_per_class(confusion)),
            context_false_foreground=100.0 * (inside - context[0]) / inside if inside else None,
            context_as_class=tuple(100.0 * count / inside for count in context) if inside else (),
        )


def _background_below(by_background: Tensor, index: int) -> Tensor:
    """Confusion `[K, K]` at threshold `index`: what lies in the buckets up to it is background."""
    confusion = by_background[index + 1 :].sum(0)
    confusion[:, 0] += by_background[: index + 1].sum((0, 2))
    return confusion
