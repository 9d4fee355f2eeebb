"""Published results of the field on VOC 2012 val and COCO 2014 val, with the protocol of each.

Mean IoU in per cent. Most methods predict all classes (`unfiltered`). The released CoSA
evaluation removes the classes that are not among the true labels of the validation image
(`true_labels`): its 76.4 and 51.1 must not be compared with unfiltered numbers. `unstated` means
that neither paper nor code says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PublishedProtocol = Literal["unfiltered", "true_labels", "unstated"]


@dataclass(frozen=True)
class PublishedResult:
    """One published number."""

    method: str
    backbone: str
    stages: Literal["single-stage", "multi-stage"]
    dataset: Literal["VOC", "COCO"]
    split: str
    miou: float
    protocol: PublishedProtocol
    source: str


def _pair(
    method: str,
    backbone: str,
    voc: float,
    coco: float,
    source: str,
    protocol: PublishedProtocol = "unfiltered",
    stages: Literal["single-stage", "multi-stage"] = "single-stage",
) -> tuple[PublishedResult, PublishedResult]:
    return (
        PublishedResult(method, backbone, stages, "VOC", "val", voc, protocol, source),
        PublishedResult(method, backbone, stages, "COCO", "val", coco, protocol, source),
    )


COSA_LOG = "best of the training log of the released ViT-B run, column without true labels"

PUBLISHED: tuple[PublishedResult, ...] = (
    *_pair("ToCo", "ViT-B", 71.1, 42.3, "Ru et al., CVPR 2023; multi-scale and CRF"),
    *_pair("DuPL", "ViT-B (21k)", 73.3, 44.6, "Wu et al., CVPR 2024; multi-scale and CRF"),
    *_pair("SeCo", "ViT-B", 74.0, 46.7, "Yang et al., CVPR 2024; multi-scale and CRF"),
    *_pair("WeCLIP", "CLIP ViT-B", 76.4, 47.1, "Zhang et al., CVPR 2024; multi-scale and CRF"),
    *_pair("MoRe", "ViT-B", 76.4, 47.4, "Yang et al., AAAI 2025; multi-scale and CRF"),
    *_pair("ExCEL", "CLIP ViT-B", 78.4, 50.3, "Yang et al., CVPR 2025; multi-scale and CRF"),
    *_pair("CoSA", "ViT-B", 76.2, 51.0, "Yang et al., ECCV 2024; without CRF", "true_labels"),
    *_pair("CoSA + CRF", "ViT-B", 76.4, 51.1, "Yang et al., ECCV 2024", "true_labels"),
    PublishedResult(
        "CoSA (released log)", "ViT-B", "single-stage", "VOC", "val", 73.7, "unfiltered", COSA_LOG,
    ),
    PublishedResult(
        "CoSA (released log, 5,000 images)", "ViT-B", "single-stage", "COCO", "val", 48.5,
        "unfiltered", COSA_LOG + "; on 5,000 images of val",
    ),
    *_pair(
        "CoSA-MS", "Swin-B", 81.4, 53.7, "Yang et al., ECCV 2024; no code was released",
        "unstated", "multi-stage",
    ),
)  # fmt: skip


def published_results(dataset: str, split: str = "val") -> list[PublishedResult]:
    """Published results of exactly this data set and split, best first.

    VOC-mini or any other part of a data set has none.
    """
    name = dataset.strip().casefold()
    found = [r for r in PUBLISHED if r.dataset.casefold() == name and r.split == split]
    return sorted(found, key=lambda result: -result.miou)
