"""The generated world: same picture for the same key, exact masks, the statistics it promises."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from cosa_dist.data.synthetic.drawing import GROUNDS, KINDS, Field, draw, noise, rails
from cosa_dist.data.synthetic.images import (
    COEXISTENCE_CLASS,
    SYNTHETIC_CLASSES,
    SyntheticImage,
    generate_image,
)

TRAIN = SYNTHETIC_CLASSES.index(COEXISTENCE_CLASS) + 1


def generate_split(split: str, count: int, seed: int, image_size: int) -> Iterator[SyntheticImage]:
    return (generate_image(split, index, seed, image_size) for index in range(count))


@pytest.fixture(scope="module")
def world() -> list[SyntheticImage]:
    return list(generate_split("train", 500, seed=3, image_size=64))


def _equal(first: SyntheticImage, second: SyntheticImage) -> bool:
    return (
        first.id == second.id
        and np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
        and np.array_equal(first.context_mask, second.context_mask)
    )


def _with_train(world: list[SyntheticImage]) -> NDArray[np.bool_]:
    return np.array([bool((picture.mask == TRAIN).any()) for picture in world])


def _with_rails(world: list[SyntheticImage]) -> NDArray[np.bool_]:
    return np.array([bool(picture.context_mask.any()) for picture in world])


def test_the_same_key_gives_the_same_picture() -> None:
    first = list(generate_split("train", 6, seed=5, image_size=48))
    again = list(generate_split("train", 6, seed=5, image_size=48))
    assert all(map(_equal, first, again))


def test_a_picture_does_not_depend_on_the_count_nor_on_its_neighbours() -> None:
    many = list(generate_split("val", 9, seed=1, image_size=48))
    few = list(generate_split("val", 4, seed=1, image_size=48))
    assert all(map(_equal, few, many[:4]))
    assert _equal(generate_image("val", 7, 1, 48), many[7])


@pytest.mark.parametrize(("split", "seed"), [("val", 0), ("train", 1)])
def test_splits_and_seeds_differ(split: str, seed: int) -> None:
    first = generate_split("train", 12, seed=0, image_size=48)
    other = generate_split(split, 12, seed=seed, image_size=48)
    for one, two in zip(first, other, strict=True):
        assert not np.array_equal(one.image, two.image)


def test_pictures_of_a_split_differ(world: list[SyntheticImage]) -> None:
    assert len({picture.image.tobytes() for picture in world}) == len(world)
    assert len({picture.id for picture in world}) == len(world)


@pytest.mark.parametrize("size", [32, 50, 128])
def test_shapes_types_and_values(size: int) -> None:
    for picture in generate_split("val", 40 if size < 100 else 8, seed=2, image_size=size):
        assert picture.image.shape == (size, size, 3)
        assert picture.mask.shape == picture.context_mask.shape == (size, size)
        assert {picture.image.dtype, picture.mask.dtype, picture.context_mask.dtype} == {np.dtype(np.uint8)}
        assert 1 <= picture.mask.max() <= len(SYNTHETIC_CLASSES)
        assert set(np.unique(picture.context_mask)) <= {0, 1}


def test_every_picture_has_background_and_one_to_three_tags(world: list[SyntheticImage]) -> None:
    counts = np.zeros(4, dtype=int)
    for picture in world:
        tags = set(np.unique(picture.mask)) - {0}
        assert 1 <= len(tags) <= 3
        assert (picture.mask == 0).any()
        counts[len(tags)] += 1
    assert counts[1:].min() >= 30


def test_every_class_is_common(world: list[SyntheticImage]) -> None:
    for label in range(1, len(SYNTHETIC_CLASSES) + 1):
        share = np.mean([(picture.mask == label).any() for picture in world])
        assert 0.12 < share < 0.45, SYNTHETIC_CLASSES[label - 1]


def test_the_context_never_covers_an_object(world: list[SyntheticImage]) -> None:
    for picture in world:
        assert not picture.mask[picture.context_mask == 1].any()


def test_trains_nearly_always_have_rails_and_others_seldom(world: list[SyntheticImage]) -> None:
    train, with_rails = _with_train(world), _with_rails(world)
    assert 0.9 <= with_rails[train].mean() <= 0.99
    assert 0.03 <= with_rails[~train].mean() <= 0.13


def test_rails_touch_the_train(world: list[SyntheticImage]) -> None:
    both = [p for p in world if (p.mask == TRAIN).any() and p.context_mask.any()]
    touching = 0
    for picture in both:
        above = picture.mask[:-1] == TRAIN
        touching += bool((above & (picture.context_mask[1:] == 1)).any())
    assert touching / len(both) > 0.95


def test_objects_are_small_and_large(world: list[SyntheticImage]) -> None:
    side = np.array(
        [
            np.sqrt((picture.mask == label).mean())
            for picture in world
            for label in set(np.unique(picture.mask)) - {0}
        ]
    )
    assert np.quantile(side, 0.03) < 0.12
    assert np.quantile(side, 0.97) > 0.45
    assert 0.15 < np.median(side) < 0.4


def test_objects_hide_each_other_in_part() -> None:
    """Classes that touch without background between them overlap somewhere."""
    touching = 0
    pictures = list(generate_split("train", 120, seed=0, image_size=64))
    for picture in pictures:
        left, right = picture.mask[:, :-1], picture.mask[:, 1:]
        touching += int(((left != right) & (left > 0) & (right > 0)).sum() >= 3)
    assert 0.1 < touching / len(pictures) < 0.6


def test_the_mask_is_where_the_object_is_painted() -> None:
    """Independent oracle: the train's hazard-yellow nose lies inside the train's mask."""
    inside = total = 0
    for picture in generate_split("train", 80, seed=4, image_size=96):
        red, green, blue = (picture.image[..., c].astype(int) for c in range(3))
        yellow = (red > 170) & (green > 150) & (blue < 60) & (np.abs(red - green) < 45)
        if (picture.mask == TRAIN).any() and len(np.unique(picture.mask)) == 2:
            total += int(yellow.sum())
            inside += int((picture.mask[yellow] == TRAIN).sum())
    assert total > 100
    assert inside / total > 0.97


@pytest.mark.parametrize("name", SYNTHETIC_CLASSES)
def test_each_kind_has_a_telling_part_smaller_than_its_rest(name: str) -> None:
    axis = (np.arange(200, dtype=np.float32) + 0.5) / 100 - 1.0
    u, v = np.meshgrid(axis, axis)
    parts = KINDS[name].parts(u, v, Generator(PCG64(0)))
    silhouette, colours = draw(name, u, v, Generator(PCG64(0)))
    assert np.array_equal(silhouette, parts.body | parts.mark)
    assert colours.shape == (200, 200, 3)
    share = parts.mark.sum() / silhouette.sum()
    assert 0.05 < share < 0.45
    assert (parts.mark & parts.mark_pattern).any()
    assert (parts.mark & ~parts.mark_pattern).any()
    assert 0.2 < silhouette.mean() < 0.7


def test_silhouettes_differ_between_kinds() -> None:
    axis = (np.arange(96, dtype=np.float32) + 0.5) / 48 - 1.0
    u, v = np.meshgrid(axis, axis)
    cut = {name: draw(name, u, v, Generator(PCG64(0)))[0] for name in SYNTHETIC_CLASSES}
    for first in SYNTHETIC_CLASSES:
        for second in SYNTHETIC_CLASSES:
            if first < second:
                overlap = (cut[first] & cut[second]).sum() / (cut[first] | cut[second]).sum()
                assert overlap < 0.85, (first, second)


def test_noise_takes_its_grid_values_and_stays_between_them() -> None:
    field = noise(Generator(PCG64(8)), 12, 20, cells=4)
    grid = Generator(PCG64(8)).random((5, 5), dtype=np.float32)
    np.testing.assert_allclose(field[::3, ::5], grid[:4, :4], atol=1e-6)
    assert field.min() >= grid.min()
    assert field.max() <= grid.max()
    assert field.std() > 0.1


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_are_textured(ground: Callable[[Generator, int], Field]) -> None:
    picture = ground(Generator(PCG64(1)), 64)
    assert picture.shape == (64, 64, 3)
    assert picture.min() >= 0.0
    assert picture.max() <= 1.0
    assert picture.std(axis=(0, 1)).max() > 0.02


def test_rails_cover_the_band_asked_for() -> None:
    _, region = rails(Generator(PCG64(0)), 100, centre=0.505, width=0.2, tilt=0.0)
    rows = np.flatnonzero(region.all(axis=1))
    assert np.array_equal(rows, np.arange(41, 61))
    assert region.sum() == 20 * 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", 0, 0, 16), "image_size is 16"),
        (("train", -1, 0, 64), "index -1"),
        (("train", 0, -2, 64), "seed -2"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_image(*arguments)
