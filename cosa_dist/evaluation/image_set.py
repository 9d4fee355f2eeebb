"""Which images were evaluated: a digest of classes, image ids and true masks, and the field's sets by name.

Scores may stand in one ranking only if they are of the same classes on the same images. Masks are in the
digest by the number of pixels of each class: other masks (a border that is ignored or not) give other scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from cosa_dist.data.catalog import COCO, VOC, DatasetInfo

KEY_BYTES = 8


class Benchmark(NamedTuple):
    """A set of images that published results are of, known by all ids or by their number and some of them."""

    name: str  # data set and split, e.g. `VOC val`
    info: DatasetInfo  # whose classes must be evaluated
    images: int  # number of its images
    ids_digest: str = ""  # `ids_digest` of its ids, if all are known
    members: tuple[str, ...] = ()  # ids that must be among the evaluated ones


def image_key(image_id: str) -> int:
    """A number of 64 bits (signed) that stands for an image id."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=KEY_BYTES).digest()
    return int.from_bytes(digest, "big", signed=True)


def ids_digest(keys: Iterable[int]) -> str:
    """Digest of a set of image keys, in whatever order they come."""
    parts = sorted(key.to_bytes(KEY_BYTES, "big", signed=True) for key in keys)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def image_set(class_names: Sequence[str], keys: Collection[int], pixels: Sequence[int]) -> str:
    """Digest of C classes, image keys and the true pixels of the K = C + 1 classes (background first).

    The order of images and classes does not matter; empty without images.
    """
    if not keys:
        return ""
    classes = sorted(zip(class_names, pixels[1:], strict=True))
    text = repr((pixels[0], classes, ids_digest(keys)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def benchmark_of(class_names: Sequence[str], keys: Collection[int]) -> str:
    """Name of the benchmark that these classes and images are, empty if none."""
    for known in BENCHMARKS:
        if sorted(class_names) == sorted(known.info.class_names) and len(keys) == known.images:
            members = {image_key(member) for member in known.members}
            if known.ids_digest in ("", ids_digest(keys)) and members <= set(keys):
                return known.name
    return ""


# COCO lists its val ids in rising order; its 5,000 image part, used while training, is their beginning.
_FIRST_OF_COCO = (42, 73, 74, 133, 1000, 2006, 3001, 4011, 5001, 6005, 7023, 8005)
_LATER_OF_COCO = (71673, 71682, 71699, 71711, 71737, 71756, 71807, 71826, 71857)
_COCO_MEMBERS = tuple(f"COCO_val2014_{number:012d}" for number in (*_FIRST_OF_COCO, *_LATER_OF_COCO))
BENCHMARKS = (
    Benchmark(
        "VOC val",
        VOC,
        1449,
        # of ImageSets/Segmentation/val.txt as in chendudai/CLIMS 050d608, voc12/val.txt (ids as year_number)
        ids_digest="2ed3d5f7e4a764a9de116cf12bbb3ef745675bca56e40d2f9c7b866fa8106c66",
    ),
    # No complete list of ids was at hand: the number and these members stand for it.
    Benchmark("COCO val", COCO, 40137, members=_COCO_MEMBERS),
    # members: rulixiang/ToCo ab46ceb, datasets/coco/val_part.txt; the last one is the list's last
    Benchmark("COCO val_part", COCO, 5000, members=_COCO_MEMBERS),
)
