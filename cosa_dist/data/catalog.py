"""What is known of each data set: class names in id order and the sizes of its splits; VOC's colours.

Class ids follow the masks: 0 is background, 1..C are the foreground classes in the order given here, 255 is
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cosa_dist.data.errors import DataError

IGNORE = 255
"""Mask value of pixels that count for nothing."""

MAX_FOREGROUND = 254
"""Most foreground classes an 8-bit mask can hold beside background and ignore."""

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

UNLABELED = ("unlabeled", "unlabelled")
"""What tools call pixels and pictures that nobody gave a class."""
IGNORED = ("ignore", "ignored", "dontcare", *UNLABELED)
"""Names of classes whose pixels count for nothing."""
_MAYBE_BACKGROUND = (*UNLABELED, "void", "unknown")
_MAYBE_NONE = re.compile(
    r"(?:backgrounds?|non?|not|none|without)[ _-].*|no|bg|neg(?:atives?)?|nothing|empty|normal|healthy|"
    r"unlabell?ed"
)


def is_background(name: str) -> bool:
    """Whether a name means background, id 0 of masks: `background` in any case, also `_background_`."""
    return name.strip("_ \t").casefold() == "background"


def is_no_class(name: str) -> bool:
    """Whether a name of a class or a column stands for pixels or pictures without a class."""
    return is_background(name) or name.strip().casefold() in UNLABELED


def may_be_background(name: str) -> bool:
    """Whether the first class of a list may be id 0 of the masks."""
    return name.casefold() in _MAYBE_BACKGROUND


def may_mean_none(name: str) -> bool:
    """Whether a class found in the data may be that of pictures that show none of the others."""
    return _MAYBE_NONE.fullmatch(name.casefold()) is not None


@dataclass(frozen=True)
class DatasetInfo:
    """A data set's name, its foreground class names in id order, and its known split sizes."""

    name: str
    class_names: tuple[str, ...]
    split_sizes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) <= MAX_FOREGROUND:
            raise DataError(
                f"data set '{self.name}' has {len(self.class_names)} foreground classes; "
                f"8-bit masks hold 1 to {MAX_FOREGROUND}"
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise DataError(f"data set '{self.name}' names a class twice")
        if named := [name for name in self.class_names if is_background(name)]:
            raise DataError(
                f"data set '{self.name}' has a class '{named[0]}', but background is no class: it is id 0 of "
                "masks beside the classes, and pictures of nothing else have no tag; take it out"
            )

    @property
    def num_foreground(self) -> int:
        """C, the number of foreground classes."""
        return len(self.class_names)


def voc_colour_map() -> tuple[tuple[int, int, int], ...]:
    """The 256 colours of the VOC devkit's rule as (red, green, blue) in 0..255.

    The three lowest bits of an id are the highest bits of red, green and blue, the next three the next ones.
    """

    def channel(index: int, shift: int) -> int:
        return sum((index >> (3 * level + shift) & 1) << (7 - level) for level in range(8))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(256))


VOC = DatasetInfo("voc", VOC_CLASSES, {"train": 1464, "train_aug": 10582, "val": 1449, "test": 1456})
COCO = DatasetInfo("coco", COCO_CLASSES, {"train": 82081, "val": 40137})
KNOWN: Mapping[str, DatasetInfo] = {info.name: info for info in (VOC, COCO)}


def renamed(info: DatasetInfo, name: str | None) -> DatasetInfo:
    """`info` under another name; a subset under its own name has no known split sizes."""
    if name is None or name == info.name:
        return info
    return replace(info, name=name, split_sizes={})
