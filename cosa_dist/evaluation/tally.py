"""The counts of one network's evaluation, before they become a report.

Every count is a sum over images, so tallies of ranks are simply added; nothing here grows with the number of
images but the classifier's scores (C numbers per image and head) and a key of each image's id, by which an
image that was counted twice is found and the whole set is known again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosa_dist.assignment.inference import MultiScaleOutput
from cosa_dist.collective import concatenate_over_ranks, sum_over_ranks
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.evaluation.confusion import (
    class_average_precision,
    confusion_matrix,
    image_average_precision,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    per_cent,
    pixel_accuracy,
)
from cosa_dist.evaluation.image_set import benchmark_of, image_key, image_set
from cosa_dist.evaluation.protocols import (
    CRF_PROTOCOLS,
    PROTOCOLS,
    cam_prediction,
    kept_classes,
    predict,
    predict_with_crf,
    resize_map,
    strongest_activation,
)
from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.lattice.dense_crf import DenseCrf

CAM_MEASUREMENTS = ("cam_true_labels", "aux_cam_true_labels")
CRF_MEASUREMENTS = tuple(f"{protocol}_crf" for protocol in CRF_PROTOCOLS)
MEASUREMENTS = (*PROTOCOLS, *CAM_MEASUREMENTS)


class Tally:
    """Running counts of one network on a device; add images, then ask for the report on every rank."""

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
        self._confusion = {m: self._zeros(self._classes, self._classes) for m in measured}
        self._context = {m: self._zeros(self._classes) for m in measured}
        self._by_background = self._zeros(len(self.grid) + 1, self._classes, self._classes)
        self._skipped = self._zeros(1)
        self._keys: list[int] = []
        self._rows: list[Tensor] = []

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def skip_image(self) -> None:
        """Note an image that cannot be counted because it has no mask."""
        self._skipped += 1

    def add(self, output: MultiScaleOutput, index: int, sample: EvalSample, crf: DenseCrf | None) -> None:
        """Judge all that a network says of one image of its batch."""
        assert sample.mask is not None
        mask, labels = sample.mask.to(self._device), sample.labels.to(self._device)
        context = None if sample.context is None else sample.context.to(self._device)
        logits, size = output.logits[index].float(), (mask.shape[0], mask.shape[1])
        self.add_image(sample.id, logits, output.aux_logits[index].float(), labels)
        segmentation = resize_map(output.segmentation[index], size)
        kept = {protocol: kept_classes(logits, labels, protocol) for protocol in PROTOCOLS}
        for protocol in PROTOCOLS:
            self.add_prediction(protocol, predict(segmentation, kept[protocol]), mask, context)
        if crf is not None:
            for protocol in CRF_PROTOCOLS:
                refined = predict_with_crf(segmentation, kept[protocol], crf)
                self.add_prediction(f"{protocol}_crf", refined, mask, context)
        if not self.cams:
            return
        cams, background = (
            (output.cam[index].float(), output.aux_cam[index].float()),
            self.config.cam_background,
        )
        for measurement, cam in zip(CAM_MEASUREMENTS, cams, strict=True):
            prediction = cam_prediction(cam, kept["true_labels"], background, size)
            self.add_prediction(measurement, prediction, mask, context)
        if self.grid:
            self.add_activation(*strongest_activation(cams[0], kept["predicted_labels"], size), mask)

    def add_image(self, image_id: str, logits: Tensor, aux_logits: Tensor, labels: Tensor) -> None:
        """Count one image and keep its classifiers' scores and labels (`[C]` each)."""
        self._keys.append(image_key(image_id))
        self._rows.append(torch.stack([logits, aux_logits, labels]).float())

    def add_prediction(
        self, measurement: str, prediction: Tensor, mask: Tensor, context: Tensor | None
    ) -> None:
        """Count the pixels of one image's prediction (`[H, W]` each) for one of the measurements."""
        self._confusion[measurement] += confusion_matrix(prediction, mask, self._classes)
        if context is not None:
            inside = prediction[(context > 0) & (mask == 0)]
            self._context[measurement] += torch.bincount(inside.flatten(), minlength=self._classes)

    def add_activation(self, value: Tensor, strongest: Tensor, mask: Tensor) -> None:
        """Count one image's strongest activation and its class 1..C (`[H, W]`) for the whole grid at once."""
        thresholds = torch.tensor(self.grid, dtype=value.dtype, device=value.device)
        # bucketize gives the number of thresholds below the value: the pixel is background under
        # threshold j exactly where its bucket is at most j.
        buckets = torch.bucketize(value, thresholds).reshape(-1)
        truth = mask.reshape(-1).long()
        counted = truth < self._classes
        places = (buckets * self._classes + truth) * self._classes + strongest.reshape(-1)
        counts = torch.bincount(places[counted], minlength=self._by_background.numel())
        self._by_background += counts.reshape(self._by_background.shape)

    def report(self, network: str, masks_needed: bool = True) -> EvalReport:
        """Sum the counts over the ranks and read the scores from them; every rank must call this.

        Raises:
            ValueError: no rank counted an image and `masks_needed`, or one was counted more than once.
        """
        rows, keys = self._rows_of_all_ranks(network)
        if not keys and masks_needed:
            raise ValueError(
                f"the evaluation of the network {network!r} found no image with a mask: "
                "choose a split that has masks"
            )
        logits, aux_logits, labels = rows.unbind(1)
        by_background = sum_over_ranks(self._by_background)
        true_pixels = sum_over_ranks(self._confusion["unfiltered"]).sum(1).tolist()
        aux_precision = class_average_precision(aux_logits, labels).nanmean()
        return EvalReport(
            network=network,
            class_names=self.class_names,
            images=len(keys),
            images_without_mask=int(sum_over_ranks(self._skipped)),
            scores={m: self._score(m) for m in self._confusion},
            map_image=per_cent(image_average_precision(logits, labels).mean()),
            map_class=per_cent(class_average_precision(logits, labels).nanmean()),
            aux_map_class=per_cent(aux_precision) if self.cams else None,
            cam_miou_by_background={
                threshold: per_cent(mean_iou(_background_below(by_background, index)))
                for index, threshold in enumerate(self.grid)
            },
            image_set=image_set(self.class_names, keys, true_pixels),
            benchmark=benchmark_of(self.class_names, keys),
        )

    def _rows_of_all_ranks(self, network: str) -> tuple[Tensor, list[int]]:
        """Scores and labels `[N, 3, C]` and keys of all images, ordered alike for any number of ranks."""
        local = torch.tensor(self._keys, dtype=torch.int64, device=self._device)
        none = torch.zeros(0, 3, self._classes - 1, device=self._device)
        keys = concatenate_over_ranks(local)
        rows = concatenate_over_ranks(torch.stack(self._rows) if self._rows else none)
        images, distinct = len(keys), len(keys.unique())
        if distinct != images:
            raise ValueError(
                f"the evaluation of the network {network!r} counted {images} images of which only "
                f"{distinct} are different: give every image to one rank once, and unique ids"
            )
        order = keys.argsort()
        return rows[order], keys[order].tolist()

    def _score(self, measurement: str) -> SegmentationScore:
        confusion = sum_over_ranks(self._confusion[measurement]).cpu()
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
