"""Which images were evaluated: the same whatever their order and name, another with anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosa_dist.data.catalog import COCO_CLASSES, VOC_CLASSES
from cosa_dist.evaluation import image_set as module
from cosa_dist.evaluation.image_set import Benchmark, benchmark_of, ids_digest, image_key, image_set

KEYS = [image_key(name) for name in ("a", "b", "c")]
PLAIN = image_set(("cat", "dog"), KEYS, (100, 20, 30))


@settings(deadline=None, max_examples=20)
@given(st.permutations(KEYS))
def test_the_order_of_images_and_classes_does_not_matter(keys):
    assert image_set(("dog", "cat"), keys, (100, 30, 20)) == PLAIN
    assert len(PLAIN) == 16


@pytest.mark.parametrize(
    ("classes", "keys", "pixels"),
    [
        (("cat", "dog"), KEYS[:2], (100, 20, 30)),
        (("cat", "dog"), [*KEYS[:2], image_key("d")], (100, 20, 30)),
        (("cat", "cow"), KEYS, (100, 20, 30)),
        (("cat", "dog"), KEYS, (110, 20, 30)),
        (("cat", "dog"), KEYS, (100, 30, 20)),
        (("cat", "dog", "cow"), KEYS, (100, 20, 30, 0)),
    ],
    ids=["fewer", "other", "class", "background", "masks", "more classes"],
)
def test_other_images_classes_or_masks_are_another_set(classes, keys, pixels):
    assert image_set(classes, keys, pixels) != PLAIN


def test_no_image_is_no_set():
    assert image_set(("cat",), [], (0, 0)) == ""
    assert benchmark_of(VOC_CLASSES, []) == ""


def test_a_benchmark_is_its_classes_and_exactly_its_images(monkeypatch):
    ids = [f"2007_{number:06d}" for number in range(5)]
    keys = [image_key(name) for name in ids]
    small = Benchmark("VOC val", module.VOC, 5, ids_digest=ids_digest(keys))
    monkeypatch.setattr(module, "BENCHMARKS", (small,))
    assert benchmark_of(VOC_CLASSES, keys[::-1]) == "VOC val"
    assert benchmark_of(VOC_CLASSES[::-1], keys) == "VOC val"
    assert benchmark_of(("weed", "crop", "soil"), keys) == ""
    assert benchmark_of(VOC_CLASSES, keys[:4]) == ""
    assert benchmark_of(VOC_CLASSES, [*keys[:4], image_key("2011_003271")]) == ""


def coco_keys(numbers: range | list[int]) -> list[int]:
    return [image_key(f"COCO_val2014_{number:012d}") for number in numbers]


def test_coco_val_is_known_by_its_number_and_some_members():
    members = [image_key(member) for member in module.BENCHMARKS[1].members]
    whole = members + coco_keys(range(100000, 140137 - len(members)))
    assert benchmark_of(COCO_CLASSES, whole) == "COCO val"
    assert benchmark_of(COCO_CLASSES, whole[:-1]) == ""
    assert benchmark_of(COCO_CLASSES, [*whole[1:], *coco_keys([200000])]) == ""
    assert benchmark_of(VOC_CLASSES, whole) == ""


def test_the_part_of_coco_is_another_set_than_the_whole():
    members = [image_key(member) for member in module.BENCHMARKS[2].members]
    part = members + coco_keys(range(100000, 105000 - len(members)))
    assert benchmark_of(COCO_CLASSES, part) == "COCO val_part"
    assert benchmark_of(COCO_CLASSES, coco_keys(range(100000, 105000))) == ""
