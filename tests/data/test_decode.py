"""Decoding: class ids from every kind of mask, and refusal of what is no picture or no mask."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cosa_dist.data import decode
from cosa_dist.data.decode import (
    ORIENTATION,
    as_grey_png,
    decode_image,
    decode_mask,
    encode_jpeg,
    encode_mask,
    orientation_of,
)
from cosa_dist.data.errors import RecordError

IDS = np.array([[0, 1, 2], [3, 20, 255]], dtype=np.uint8)


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def raw_png(width: int, height: int, bits: int, rows: list[bytes]) -> bytes:
    """A grey-level PNG written by hand, with fewer than eight bits a pixel where asked."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\x00" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_palette_and_grey_masks_give_the_same_ids() -> None:
    grey = Image.fromarray(IDS)
    palette = Image.fromarray(IDS)
    palette.putpalette([9, 9, 9] * 256)
    for picture in (grey, palette):
        data = png_bytes(picture)
        np.testing.assert_array_equal(decode_mask(data), IDS)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(as_grey_png(data, IDS)))), IDS)
    assert as_grey_png(png_bytes(grey), IDS) == png_bytes(grey)
    assert as_grey_png(png_bytes(palette), IDS) != png_bytes(palette)


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [(4, b"\x12\x0f", [1, 2, 0, 15]), (2, b"\x1b", [0, 1, 2, 3]), (1, b"\x50", [0, 1, 0, 1])],
)
def test_grey_masks_of_few_bits_keep_their_values(bits: int, row: bytes, expected: list[int]) -> None:
    data = raw_png(4, 1, bits, [row])
    assert decode_mask(data).tolist() == [expected]
    assert decode_mask(as_grey_png(data, decode_mask(data))).tolist() == [expected]


def test_masks_that_hold_no_ids_are_refused() -> None:
    with pytest.raises(RecordError, match="mask has colours"):
        decode_mask(png_bytes(Image.new("RGB", (3, 2))))
    buffer = io.BytesIO()
    Image.fromarray(IDS).save(buffer, format="JPEG")
    with pytest.raises(RecordError, match="JPEG"):
        decode_mask(buffer.getvalue())
    with pytest.raises(RecordError, match="300 does not fit"):
        decode_mask(png_bytes(Image.fromarray(np.full((2, 2), 300, dtype=np.uint16))))


def test_damaged_pictures_are_refused_in_one_line() -> None:
    whole = encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert decode_image(whole).size == (64, 64)
    for data in (whole[: len(whole) // 2], b"", b"no picture", encode_mask(IDS)[:40]):
        with pytest.raises(RecordError, match="image cannot be decoded") as caught:
            decode_image(data)
        assert "\n" not in str(caught.value)


def test_bombs_are_refused_before_their_pixels_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    vast = raw_png(60000, 60000, 8, [b"\x00"])
    with pytest.raises(RecordError, match="larger than the limit"):
        decode_image(vast)
    with pytest.raises(RecordError, match="larger than the limit"):
        decode_mask(raw_png(9000, 9000, 8, [b"\x00"]))
    monkeypatch.setattr(decode, "MAX_PIXELS", 5)
    with pytest.raises(RecordError, match="3x2 pixels is larger than the limit of 5"):
        decode_mask(encode_mask(IDS))


def test_grey_and_transparent_photographs_become_rgb() -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 4)).save(buffer, format="TIFF")
        assert decode_image(buffer.getvalue()).mode == "RGB"


def test_grey_of_16_bits_keeps_its_upper_half_and_32_bits_are_refused() -> None:
    deep = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(deep).save(buffer, format=kind)
        assert np.asarray(decode_image(buffer.getvalue()))[0, :, 0].tolist() == [0, 1, 128, 255]
    for values in (deep.astype(np.int32), deep.astype(np.float32)):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format="TIFF")
        with pytest.raises(RecordError, match="32 bits"):
            decode_image(buffer.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_exif_orientation_is_read_and_not_applied(kind: str, mode: str) -> None:
    for orientation, expected in ((3, 3), (6, 6), (2, 2), (1, 1), (0, 1), (9, 1), (None, 1)):
        buffer = io.BytesIO()
        note = Image.Exif()
        if orientation is not None:
            note[ORIENTATION] = orientation
        Image.new(mode, (5, 4)).save(buffer, format=kind, exif=note)
        picture = decode_image(buffer.getvalue())
        assert (orientation_of(picture), picture.size) == (expected, (5, 4))


@pytest.mark.parametrize("note", [b"Exif\0\0noise", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"", b"II*\0"])
def test_a_damaged_exif_note_is_none(note: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, format="JPEG", exif=note)
    assert orientation_of(decode_image(buffer.getvalue())) == 1
