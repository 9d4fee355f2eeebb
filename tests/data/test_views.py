"""Views: the released numbers, geometry by hand, and draws that depend on nothing but their key."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.views import (
    COLOUR_OPERATIONS,
    ViewDraw,
    draw_view,
    normalise,
    place_and_crop,
    strong_view,
    to_tensor,
    weak_view,
)

Golden = Callable[[str], dict[str, np.ndarray]]

RELEASED_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalise": "RandEqualize",
    "solarise": "RandSolarize",
    "colour": "RandColor",
    "contrast": "RandContrast",
    "brightness": "RandBrightness",
    "sharpness": "RandSharpness",
    "posterise": "RandPosterize",
}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(1, 256, (height, width, 3), dtype=np.uint8))


def draw(seed: int = 0, epoch: int = 0, position: int = 0, **changes: object) -> ViewDraw:
    drawn = draw_view(seed=seed, epoch=epoch, position=position, size=(50, 40), crop_size=32)
    return replace(drawn, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_released_crops_and_boxes(golden: Golden, number: int) -> None:
    arrays = golden("random_crop")
    pixels = arrays[f"in_{number}"]
    np.testing.assert_array_equal(pixels, pixels.astype(np.uint8))
    np.random.seed(number)
    random.seed(number)
    sides = [max(48, side) for side in pixels.shape[:2]]
    pad = tuple(
        int(np.random.randint(side - own + 1)) for side, own in zip(sides, pixels.shape[:2], strict=True)
    )
    window = tuple(random.randrange(0, side - 48 + 1) for side in sides)
    crop, box = place_and_crop(Image.fromarray(pixels.astype(np.uint8)), 48, pad, window)
    np.testing.assert_array_equal(np.asarray(crop), arrays[f"out_crop_{number}"])
    assert list(box) == arrays[f"out_box_{number}"].tolist()


def test_released_colour_operations(golden: Golden) -> None:
    arrays = golden("strong_view_ops")
    image = Image.fromarray(arrays["in_img"])
    for name, released in RELEASED_NAMES.items():
        for magnitude in range(1, 10):
            np.testing.assert_array_equal(
                np.asarray(strong_view(image, name, magnitude)),
                arrays[f"out_{released}"][magnitude - 1],
                err_msg=f"{name} {magnitude}",
            )


def test_released_normalisation(golden: Golden) -> None:
    arrays = golden("normalise")
    image = torch.from_numpy(arrays["in_img"]).permute(2, 0, 1)
    normalised = normalise(image)
    np.testing.assert_allclose(normalised.numpy(), arrays["out_train"], rtol=0, atol=1e-6)


def test_normalise_by_hand_and_refusal() -> None:
    value = normalise(torch.full((2, 3, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(value[1, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))
    assert value.dtype == torch.float32
    with pytest.raises(DataError, match="3, H, W"):
        normalise(torch.zeros(4, 4, 3, dtype=torch.uint8))


def test_crop_by_hand_and_against_a_built_canvas() -> None:
    image = noise(5, 3)
    crop, box = place_and_crop(image, 4, (1, 0), (0, 1))
    assert box == (1, 4, 0, 4)
    expected = np.zeros((4, 4, 3), dtype=np.uint8)
    expected[1:4] = np.asarray(image)[:, 1:]
    np.testing.assert_array_equal(np.asarray(crop), expected)


@pytest.mark.parametrize("position", range(12))
def test_box_is_exactly_where_the_image_is(position: int) -> None:
    image = Image.new("RGB", (50, 40), (255, 255, 255))
    drawn = replace(draw(position=position), blur_radius=None)
    crop, (top, bottom, left, right) = weak_view(image, drawn, 32)
    inside = np.zeros((32, 32), dtype=bool)
    inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(np.asarray(crop).min(axis=2) == 255, inside)
    np.testing.assert_array_equal(np.asarray(crop).max(axis=2) == 0, ~inside)


def test_weak_view_is_scale_flip_crop_blur_in_this_order() -> None:
    image = noise(50, 40)
    drawn = ViewDraw(60, 48, True, (0, 0), (10, 20), 1.3, "identity", 1)
    crop, box = weak_view(image, drawn, 32)
    scaled = np.asarray(image.resize((60, 48), Image.Resampling.BILINEAR))[:, ::-1]
    expected = Image.fromarray(scaled[10:42, 20:52].copy()).filter(ImageFilter.GaussianBlur(1.3))
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(expected))
    assert box == (0, 32, 0, 32)


def test_a_draw_is_a_pure_function_of_its_key() -> None:
    assert draw(1, 2, 3) == draw(1, 2, 3)
    others = [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)]
    assert all(other != draw(1, 2, 3) for other in others)


def test_draws_cover_what_the_method_asks() -> None:
    drawn = [draw(position=position) for position in range(3000)]
    assert min(d.width for d in drawn) == 25
    assert max(d.width for d in drawn) == 99
    assert abs(sum(d.flip for d in drawn) / 3000 - 0.5) < 0.04
    radii = [d.blur_radius for d in drawn if d.blur_radius is not None]
    assert abs(len(radii) / 3000 - 0.5) < 0.04
    assert 0.1 <= min(radii) < 0.15
    assert 1.95 < max(radii) <= 2.0
    operations = Counter(d.operation for d in drawn)
    assert set(operations) == set(COLOUR_OPERATIONS)
    assert len(operations) == 9
    assert all(abs(count / 3000 - 1 / 9) < 0.03 for count in operations.values())
    assert {d.magnitude for d in drawn} == set(range(1, 10))
    for d in drawn:
        assert d.height in (int(d.width / 50 * 40 + shift) for shift in (0, 0.8))
        for pad, window, side in zip(d.pad, d.window, (d.height, d.width), strict=True):
            assert 0 <= pad <= max(32 - side, 0)
            assert 0 <= window <= max(side - 32, 0)


def test_a_tiny_image_keeps_a_pixel() -> None:
    drawn = draw_view(seed=0, epoch=0, position=0, size=(1, 1), crop_size=4, scale_range=(0.1, 0.2))
    crop, (top, bottom, left, right) = weak_view(Image.new("RGB", (1, 1)), drawn, 4)
    assert crop.size == (4, 4)
    assert (bottom - top, right - left) == (1, 1)


def test_to_tensor_puts_channels_first() -> None:
    image = noise(5, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 3, 5)
    assert tensor.is_contiguous()
    assert tensor[:, 2, 4].tolist() == list(image.getpixel((4, 2)))  # type: ignore[arg-type]
