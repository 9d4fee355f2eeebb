"""Published results on VOC 2012 and COCO 2014, under the protocol that each was measured with.

Mean IoU in per cent. The headline numbers of the single-stage methods are after a dense CRF
(`unfiltered_crf`), each with sizes, scales and merging of its own (`evaluation`). The released CoSA
evaluation removes the classes that are not among the true labels of the validation image (`true_labels`,
`true_labels_crf`). `server` is the number of VOC's test server. `unstated` means that the protocol could
not be read from paper or code: such a row is listed and stands beside no run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cosa_dist.tracking.evaluation_text import ONE_VIEW

PublishedProtocol = Literal[
    "unfiltered", "unfiltered_crf", "true_labels", "true_labels_crf", "server", "unstated"
]


@dataclass(frozen=True)
class PublishedResult:
    """One published number.

    Attributes:
        split: `val`, `test`, or `val_part` (5,000 images of COCO val that are used while training).
        evaluation: size, scales, merging over the scales, and iterations of the CRF; empty where unknown.
        supervision: what is used beside ImageNet weights and image tags.
        verified: false for a figure taken from other papers' tables, not seen at its source.
    """

    method: str
    backbone: str
    dataset: Literal["VOC", "COCO"]
    split: str
    miou: float
    protocol: PublishedProtocol
    source: str
    evaluation: str = ""
    supervision: str = ""
    year: int = 0
    stages: Literal["single-stage", "multi-stage"] = "single-stage"
    verified: bool = True

    @property
    def one_view(self) -> bool:
        """Whether the images were seen once, neither scaled nor mirrored."""
        return self.evaluation.endswith(ONE_VIEW)


@dataclass(frozen=True)
class _Method:
    """What the rows of one network have in common."""

    name: str
    backbone: str
    source: str
    year: int
    supervision: str = ""
    stages: Literal["single-stage", "multi-stage"] = "single-stage"
    verified: bool = True

    def row(
        self,
        where: str,
        miou: float,
        protocol: PublishedProtocol = "unstated",
        evaluation: str = "",
        note: str = "",
    ) -> PublishedResult:
        dataset, split = where.split(" ")
        return PublishedResult(
            method=self.name,
            backbone=self.backbone,
            dataset="VOC" if dataset == "VOC" else "COCO",
            split=split,
            miou=miou,
            protocol=protocol,
            source=f"{self.source}; {note}" if note else self.source,
            evaluation=evaluation,
            supervision=self.supervision,
            year=self.year,
            stages=self.stages,
            verified=self.verified,
        )


VAL, TEST, COCO, PART = "VOC val", "VOC test", "COCO val", "COCO val_part"
PLAIN: PublishedProtocol = "unfiltered"
CRF: PublishedProtocol = "unfiltered_crf"
TRUE: PublishedProtocol = "true_labels"
TRUE_CRF: PublishedProtocol = "true_labels_crf"
_TEN = "CRF x 10"
_OWN_SIZE = f"own size, 3 scales + mirror, maximum, {_TEN}"
_SQUARE = f"448 square, 3 scales + mirror, maximum, {_TEN}"
_SQUARE_SUM = f"448 square, 3 scales + mirror, sum, {_TEN}"
_EXCEL = f"320 square, 4 scales + mirror, mean, {_TEN}"
_WECLIP = "longer side 512, 2 scales + mirror, mean"
_COSA = "448 square, 5 scales + mirror"
_VIEW = f"448 square, {ONE_VIEW}"
_BETTER = "the better of two students on these images"
_UNCLEAR = "which images and which evaluation: unclear"
_UNREAD = "protocol not read"

_TOCO_S = _Method("ToCo", "DeiT-B", "Ru et al., CVPR 2023", 2023)
_TOCO = _Method("ToCo", "ViT-B (21k)", "Ru et al., CVPR 2023", 2023)
_DUPL = _Method("DuPL", "ViT-B", "Wu et al., CVPR 2024", 2024)
_DUPL_21K = _Method("DuPL", "ViT-B (21k)", "Wu et al., CVPR 2024", 2024)
_SECO = _Method("SeCo", "ViT-B", "Yang et al., CVPR 2024", 2024)
_MORE = _Method("MoRe", "ViT-B", "Yang et al., AAAI 2025", 2025)
_EXCEL_VIT = _Method("ExCEL", "CLIP ViT-B", "Yang et al., CVPR 2025", 2025, "CLIP, texts")
_WECLIP_VIT = _Method("WeCLIP", "CLIP ViT-B", "Zhang et al., CVPR 2024", 2024, "CLIP", verified=False)
_WECLIP_PLUS = _Method("WeCLIP+", "CLIP + DINOv2", "TPAMI 2025, abstract", 2025, "CLIP, DINOv2")
_DICLIP = _Method("DiCLIP", "CLIP ViT-B", "TIP 2026", 2026, "CLIP, diffusion model")
_COSA_VIT = _Method("CoSA", "ViT-B", "Yang et al., ECCV 2024", 2024)
_COSA_CRF = _Method("CoSA + CRF", "ViT-B", "Yang et al., ECCV 2024", 2024, verified=False)
_COSA_LOG = _Method("CoSA (released log)", "ViT-B", "training log of the released ViT-B run", 2024)
_COSA_MS = _Method("CoSA-MS", "Swin-B", "Yang et al., ECCV 2024", 2024, stages="multi-stage", verified=False)
_CSRM = _Method("CSRM", "CNN", "VISAPP 2025", 2025, "saliency", "multi-stage")
_DHR = _Method("DHR", "ResNet-101", "ECCV 2024", 2024, "unsupervised features", "multi-stage")
_DHR_SWIN = _Method("DHR", "Swin-L", "ECCV 2024", 2024, "unsupervised features", "multi-stage")
_WEAKTR = [
    (_Method("WeakTr", backbone, "arXiv 2304.01184", 2023, extra, "multi-stage"), voc, coco)
    for backbone, extra, voc, coco in (
        ("DeiT-S", "", 74.0, 46.9),
        ("DINOv2-S", "DINOv2", 75.8, 48.9),
        ("ViT-S (21k)", "", 78.4, 50.3),
        ("EVA-02-S", "EVA-CLIP", 78.5, 51.1),
    )
]

PUBLISHED: tuple[PublishedResult, ...] = (
    _TOCO_S.row(VAL, 69.8, CRF, _OWN_SIZE),
    _TOCO_S.row(COCO, 41.3, CRF, _SQUARE_SUM),
    _TOCO_S.row(TEST, 70.5, "server"),
    _TOCO.row(VAL, 71.1, CRF, _OWN_SIZE),
    _TOCO.row(VAL, 69.2, PLAIN, _VIEW),
    _TOCO.row(COCO, 42.2, CRF, _SQUARE_SUM, "as its repository says"),
    _TOCO.row(TEST, 72.2, "server"),
    _DUPL.row(VAL, 72.2, CRF, _OWN_SIZE, _BETTER),
    _DUPL.row(VAL, 69.9, PLAIN, _VIEW, _BETTER),
    _DUPL.row(COCO, 43.5, note=_UNCLEAR),
    _DUPL.row(TEST, 71.6, "server"),
    _DUPL_21K.row(VAL, 73.3, CRF, _OWN_SIZE, _BETTER),
    _DUPL_21K.row(VAL, 70.4, PLAIN, _VIEW, _BETTER),
    _DUPL_21K.row(COCO, 44.6, note=_UNCLEAR),
    _DUPL_21K.row(TEST, 72.8, "server"),
    _SECO.row(VAL, 74.0, CRF, _SQUARE),
    _SECO.row(VAL, 72.2, PLAIN, _VIEW, "training log"),
    _SECO.row(COCO, 46.7, note=_UNCLEAR),
    _SECO.row(TEST, 73.8, "server"),
    _MORE.row(VAL, 76.4, CRF, _SQUARE),
    _MORE.row(VAL, 72.1, PLAIN, _VIEW, "end of the training log, whose best is 73.6"),
    _MORE.row(COCO, 47.4, note="script not released"),
    _MORE.row(TEST, 75.0, "server"),
    _EXCEL_VIT.row(VAL, 78.4, CRF, _EXCEL, "best of several runs"),
    _EXCEL_VIT.row(VAL, 75.6, PLAIN, f"320 square, {ONE_VIEW}", "training log"),
    _EXCEL_VIT.row(COCO, 50.3, CRF, _EXCEL),
    _EXCEL_VIT.row(TEST, 78.5, "server"),
    _WECLIP_VIT.row(VAL, 76.4, CRF, f"{_WECLIP}, {_TEN}"),
    _WECLIP_VIT.row(VAL, 74.9, PLAIN, _WECLIP),
    _WECLIP_VIT.row(COCO, 47.1, CRF, f"{_WECLIP}, {_TEN}"),
    _WECLIP_PLUS.row(COCO, 56.3, note=_UNREAD),
    _WECLIP_PLUS.row(TEST, 83.9, "server"),
    _DICLIP.row(VAL, 78.8, note=_UNREAD),
    _DICLIP.row(COCO, 48.7, note=_UNREAD),
    _DICLIP.row(TEST, 78.9, "server"),
    _COSA_VIT.row(VAL, 76.2, TRUE, _COSA),
    _COSA_VIT.row(COCO, 51.0, TRUE, _COSA, "one image of val is left out"),
    _COSA_VIT.row(TEST, 75.1, "server"),
    _COSA_CRF.row(VAL, 76.4, TRUE_CRF, f"{_COSA}, released CRF"),
    _COSA_CRF.row(COCO, 51.1, TRUE_CRF, f"{_COSA}, released CRF", "one image of val is left out"),
    _COSA_LOG.row(VAL, 73.7, PLAIN, "while training, 1,448 images"),
    _COSA_LOG.row(
        VAL,
        75.7,
        TRUE,
        "while training, 1,448 images",
        "in the same evaluation as 73.7 unfiltered",
    ),
    _COSA_LOG.row(PART, 48.5, PLAIN, "while training"),
    _COSA_MS.row(VAL, 81.4, note="no code was released"),
    _COSA_MS.row(COCO, 53.7, note="no code was released"),
    _CSRM.row(COCO, 50.4, note=_UNREAD),
    _CSRM.row(TEST, 75.0, "server"),
    _DHR.row(VAL, 79.6, note=_UNREAD),
    _DHR.row(COCO, 53.9, note=_UNREAD),
    _DHR_SWIN.row(VAL, 81.7, note=_UNREAD),
    *(method.row(VAL, voc, note=_UNREAD) for method, voc, _ in _WEAKTR),
    *(method.row(COCO, coco, note=_UNREAD) for method, _, coco in _WEAKTR),
)
