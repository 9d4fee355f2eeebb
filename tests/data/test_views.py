"""Views: the released numbers, geometry by hand, and draws that depend on nothing but their key."""

import os
import random
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cosa_dist.data.errors import DataError
from cosa_dist.data.reading import views
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
from tests.oracles.plain_views import plain_strong_view, plain_weak_view, planes

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
                strong_view(planes(image), name, magnitude),
                planes(arrays[f"out_{released}"][magnitude - 1]),
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
    np.testing.assert_array_equal(crop.min(axis=0) == 255, inside)
    np.testing.assert_array_equal(crop.max(axis=0) == 0, ~inside)


def test_weak_view_is_scale_flip_crop_blur_in_this_order() -> None:
    image = noise(50, 40)
    drawn = ViewDraw(60, 48, True, (0, 0), (10, 20), 1.3, "identity", 1)
    crop, box = weak_view(image, drawn, 32)
    scaled = np.asarray(image.resize((60, 48), Image.Resampling.BILINEAR))[:, ::-1]
    expected = Image.fromarray(scaled[10:42, 20:52].copy()).filter(ImageFilter.GaussianBlur(1.3))
    np.testing.assert_array_equal(crop, planes(expected))
    assert box == (0, 32, 0, 32)


@pytest.fixture(params=["compiled", "pillow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops and, as where there is no compiler, without."""
    if request.param == "pillow":
        monkeypatch.setattr(views, "compiled_views", lambda: None)
    elif views.compiled_views() is None:
        pytest.skip("no C compiler")


def photograph(width: int, height: int, kind: int) -> Image.Image:
    """Noise, waves with some noise, or black and white: rounding shows in each differently."""
    generator = np.random.default_rng(kind)
    pixels = generator.integers(0, 256, (height, width, 3))
    if kind % 3 == 1:
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / (3 + c)) + np.cos(y / (5 + c)) for c in range(3)]
        pixels = np.clip(128 + 50 * np.stack(waves, axis=2) + pixels / 16, 0, 255)
    elif kind % 3 == 2:
        pixels = np.where(pixels > 127, 255, 0)
    return Image.fromarray(pixels.astype(np.uint8))


SIZES = [(50, 40), (64, 48), (31, 97), (40, 62), (97, 31), (1, 1), (2, 60), (33, 2)]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale_range", [(0.5, 2.0), (1.0, 1.0), (0.03, 0.4), (2.0, 6.0)])
def test_both_views_are_pillows_to_the_last_bit(
    size: tuple[int, int], scale_range: tuple[float, float]
) -> None:
    for position in range(36):
        image = photograph(*size, position)
        drawn = draw_view(
            seed=1, epoch=0, position=position, size=size, crop_size=32, scale_range=scale_range
        )
        crop, box = weak_view(image, drawn, 32)
        expected = plain_weak_view(image, drawn, 32)
        np.testing.assert_array_equal(crop, planes(expected), err_msg=f"{drawn}")
        (pad_top, pad_left), (top, left) = drawn.pad, drawn.window
        assert box == (
            max(pad_top - top, 0), min(pad_top - top + drawn.height, 32),
            max(pad_left - left, 0), min(pad_left - left + drawn.width, 32),
        )  # fmt: skip
        for operation in COLOUR_OPERATIONS:
            changed = strong_view(crop, operation, drawn.magnitude)
            plain = plain_strong_view(expected, operation, drawn.magnitude)
            np.testing.assert_array_equal(changed, planes(plain), err_msg=f"{operation} {drawn}")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [0, 77, 255])
def test_colour_operations_of_an_even_image(value: int) -> None:
    image = Image.new("RGB", (9, 9), (value, 255 - value, value))
    for operation in COLOUR_OPERATIONS:
        for magnitude in range(1, 10):
            np.testing.assert_array_equal(
                strong_view(planes(image), operation, magnitude),
                planes(plain_strong_view(image, operation, magnitude)),
                err_msg=f"{operation} {magnitude}",
            )


@pytest.mark.usefixtures("way")
def test_every_blur_is_pillows_to_the_last_bit() -> None:
    whole = (0, 24, 0, 24)
    for radius in np.linspace(0.1, 2.0, 96).tolist():
        image = photograph(24, 24, int(radius * 100))
        drawn = replace(
            draw(), width=24, height=24, flip=False, pad=(0, 0), window=(0, 0), blur_radius=radius
        )
        crop, box = weak_view(image, drawn, 24)
        assert box == whole
        np.testing.assert_array_equal(crop, planes(plain_weak_view(image, drawn, 24)), err_msg=f"{radius}")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders: of caches, and of temporary files."""
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return cache, temporary


@pytest.fixture
def compiler() -> str:
    """The C compiler of this machine."""
    name = os.environ.get("CC") or "cc"
    if not shutil.which(shlex.split(name)[0]):
        pytest.skip("no C compiler")
    return name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("false", "false ends with code 1"),
        ("/nowhere/cc", "No such file or directory: '/nowhere/cc'"),
        ("'cc", "No closing quotation"),
    ],
)
def test_without_a_compiler_pillow_does_it_and_the_log_says_why(
    places: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
    reason: str,
) -> None:
    monkeypatch.setenv("CC", wrong)
    assert views.compiled_views.__wrapped__() is None
    assert not [file for place in places for file in place.glob("*/*")]
    (line,) = caplog.messages
    assert line.startswith("views are made by Pillow")
    assert reason in line
    assert "\n" not in line
    monkeypatch.setattr(views, "get_worker_info", lambda: object())
    assert views.compiled_views.__wrapped__() is None
    assert len(caplog.messages) == 1  # its loader processes do not say it again


def test_a_compiler_is_a_command_with_options(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", f"env LANG=C {compiler}")
    assert views.compiled_views.__wrapped__() is not None
    assert len(list(places[0].glob("cosa_dist/views-*.so"))) == 1


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("trouble", ["a file", "another user's"])
def test_where_the_cache_folder_is_of_no_use_a_temporary_one_is_taken_again_and_again(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    cache, temporary = places
    if trouble == "a file":
        cache.write_text("")
    else:
        uid = os.getuid()
        owners = {cache / "cosa_dist": uid + 1, temporary / f"cosa_dist-{uid}": uid}
        monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(st_uid=owners[path]))
    assert views.compiled_views.__wrapped__() is not None
    (folder,) = temporary.iterdir()
    (library,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("CC", "false")
    assert views.compiled_views.__wrapped__() is not None
    assert list(folder.iterdir()) == [library]


@pytest.mark.usefixtures("compiler", "places")
@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_library_is_made_again(monkeypatch: pytest.MonkeyPatch, left: int) -> None:

    def opened(path: str) -> SimpleNamespace:
        """Not really: a process keeps a library that it has opened."""
        return SimpleNamespace(cosa_grey=SimpleNamespace(), path=Path(path).resolve(strict=True))

    with monkeypatch.context() as patch:
        patch.setattr("ctypes.CDLL", opened)
        library = views.compiled_views.__wrapped__().path
    whole = library.read_bytes()
    library.write_bytes(whole[:left])
    assert views.compiled_views.__wrapped__() is not None
    assert len(library.read_bytes()) == len(whole)


def test_more_neighbours_than_there_is_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if views.compiled_views() is None:
        pytest.skip("no C compiler")
    image = photograph(8, 4000, 0)
    drawn = replace(draw(), width=4, height=4, flip=False, pad=(0, 0), window=(0, 0), blur_radius=None)
    monkeypatch.setattr(views, "_rows_first", lambda size, target: True)
    crop, _ = weak_view(image, drawn, 4)
    np.testing.assert_array_equal(crop, planes(image.resize((4, 4), Image.Resampling.BILINEAR)))


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
    assert crop.shape == (3, 4, 4)
    assert (bottom - top, right - left) == (1, 1)


def test_to_tensor_puts_channels_first() -> None:
    image = noise(5, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 3, 5)
    assert tensor.is_contiguous()
    assert tensor[:, 2, 4].tolist() == list(image.getpixel((4, 2)))  # type: ignore[arg-type]
