"""The three protocols under which a segmentation is judged, and the settings of an evaluation.

A weakly supervised network is often helped at test time by the image's labels. What a number means
depends on whose labels these are, so every score carries the name of its protocol:

* `unfiltered`: no help; the argmax over all classes. The headline number.
* `predicted_labels`: only the classes that the network's own image classifier finds.
* `true_labels`: only the classes of the image's true labels, as the released evaluation does.

The first and the last may also be judged after a dense CRF (`unfiltered_crf`, `true_labels_crf`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from cosa_dist.lattice.dense_crf import CrfSettings, DenseCrf

Protocol = Literal["unfiltered", "predicted_labels", "true_labels"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
CRF_PROTOCOLS: tuple[Protocol, ...] = ("unfiltered", "true_labels")


@dataclass(frozen=True)
class EvaluationSettings:
    """How networks are evaluated; the defaults are those of the released code.

    Attributes:
        size: side in pixels of the square that each image is resized to.
        scales: factors on `size` of the multi-scale pass.
        flip: whether each scale is also seen mirrored.
        cam_background: a CAM below or at this value is background.
        batch_size: images per multi-scale pass.
        cam_background_grid: thresholds at which the CAM is also judged under `predicted_labels`.
        aux_cam_last_scale_only: read the auxiliary CAM from the last scale only (released code).
        crf: the dense CRF after which `CRF_PROTOCOLS` are judged too; None computes nothing of it.
    """

    size: int = 448
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 0.75, 1.25)
    flip: bool = True
    cam_background: float = 0.5
    batch_size: int = 4
    cam_background_grid: tuple[float, ...] = ()
    aux_cam_last_scale_only: bool = False
    crf: CrfSettings | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot be evaluated.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        if self.size < 1 or self.batch_size < 1:
            raise ValueError(f"size ({self.size}) and batch_size ({self.batch_size}) must be at least 1")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be one or more factors above 0, not {self.scales}")
        thresholds = (self.cam_background, *self.cam_background_grid)
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(
                "cam_background and cam_background_grid must lie between 0 and 1, "
                f"not {self.cam_background} and {self.cam_background_grid}"
            )


def predicted_label_classes(logits: Tensor) -> Tensor:
    """Classes that the classifier finds: sigmoid above 0.5, or the top one if none is (ours).

    Args:
        logits: `[..., C]` mean logits over scales and flips.

    Returns:
        bool `[..., C]`, at least one true per image.
    """
    found = logits > 0
    top = functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    return torch.where(found.any(-1, keepdim=True), found, top)


def kept_classes(logits: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    """Foreground classes that may be predicted under a protocol.

    Args:
        logits: `[..., C]` mean image logits over scales and flips.
        labels: `[..., C]` true multi-hot labels; read by `true_labels` only.
        protocol: name of the protocol.

    Returns:
        bool `[..., C]`. The background is always kept and has no entry.

    Raises:
        ValueError: if there is no such protocol.
    """
    if protocol == "unfiltered":
        return torch.ones_like(logits, dtype=torch.bool)
    if protocol == "predicted_labels":
        return predicted_label_classes(logits)
    if protocol == "true_labels":
        return labels > 0.5
    raise ValueError(f"no protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")


def predict(
    segmentation: Tensor, logits: Tensor, labels: Tensor, protocol: Protocol = "unfiltered"
) -> Tensor:
    """Class of each pixel under a protocol.

    The same as setting the logits of the classes not kept to -1e5 before the argmax (released
    code), but only the planes of the kept classes are looked at.

    Args:
        segmentation: `[B, K, H, W]` segmentation logits, background first.
        logits: `[B, C]` mean image logits, C = K - 1.
        labels: `[B, C]` true multi-hot labels; read by `true_labels` only.
        protocol: name of the protocol.

    Returns:
        `[B, H, W]` int64 in 0..C.

    Raises:
        ValueError: if there is no such protocol.
    """
    if protocol == "unfiltered":
        return segmentation.argmax(1)
    kept = kept_classes(logits, labels, protocol)
    return torch.stack([_argmax_of(*pair) for pair in zip(segmentation, kept, strict=True)])


def _argmax_of(segmentation: Tensor, kept: Tensor) -> Tensor:
    """Argmax of `[K, H, W]` over the background and the kept classes (bool `[C]`) -> `[H, W]`."""
    planes = functional.pad(kept, (1, 0), value=True).nonzero().flatten()
    return planes[segmentation[planes].argmax(0)]


def predict_with_crf(
    segmentation: Tensor, logits: Tensor, labels: Tensor, crf: DenseCrf, protocol: Protocol = "unfiltered"
) -> Tensor:
    """Class of each pixel under a protocol, after a dense CRF on the softmax of the logits.

    The classes not kept enter the CRF with the probability 0 (released code).

    Args:
        segmentation: `[B, K, H, W]` segmentation logits, background first.
        logits: `[B, C]` mean image logits, C = K - 1.
        labels: `[B, C]` true multi-hot labels; read by `true_labels` only.
        crf: of the B images at H x W.
        protocol: name of the protocol.

    Returns:
        `[B, H, W]` int64 in 0..C.

    Raises:
        ValueError: if there is no such protocol, or the CRF is of other images.
    """
    kept = functional.pad(kept_classes(logits, labels, protocol), (1, 0), value=True)
    filtered = segmentation.float().masked_fill(~kept[:, :, None, None], -torch.inf)
    return crf.refine(filtered.softmax(1)).argmax(1)


def strongest_activation(
    cam: Tensor, kept: Tensor, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Largest CAM value over the kept classes at each pixel, and its class.

    Args:
        cam: `[C, h, w]` CAM of one image in [0, 1].
        kept: bool `[C]`, the classes that may be predicted.
        size: (H, W) that the kept planes are resized to (bilinear) before they are compared.

    Returns:
        value `[H, W]` and class `[H, W]` int64 in 0..C. Without a kept class both are 0.
    """
    planes = kept.nonzero().flatten()
    height, width = size or (cam.shape[-2], cam.shape[-1])
    if not planes.numel():
        value = cam.new_zeros(height, width)
        return value, value.long()
    chosen = cam[planes]
    if (height, width) != chosen.shape[-2:]:
        chosen = functional.interpolate(
            chosen[None], size=(height, width), mode="bilinear", align_corners=False
        )[0]
    value, index = chosen.max(0)
    return value, planes[index] + 1


def cam_prediction(
    cam: Tensor, kept: Tensor, background: float, size: tuple[int, int] | None = None
) -> Tensor:
    """Class of each pixel of one image by its CAM against a constant background (released code).

    Args:
        cam: `[C, h, w]` CAM in [0, 1].
        kept: bool `[C]`, the classes that may be predicted.
        background: pixels whose strongest activation is at or below this value are background.
        size: (H, W) of the result; the CAM's own if left out.

    Returns:
        `[H, W]` int64 in 0..C.
    """
    value, strongest = strongest_activation(cam, kept, size)
    return strongest.masked_fill(value <= background, 0)
